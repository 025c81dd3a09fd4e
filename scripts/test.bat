@echo off
rem Runs the test suite in its own environment, from any folder. Usage: scripts\test.bat [pytest arguments]
setlocal
call "%~dp0env.bat" all || exit /b 1
cd /d "%ROOT%"
rem Tiny models: a second thread costs more than it gives.
if not defined OMP_NUM_THREADS set "OMP_NUM_THREADS=1"
"%VENV_PYTHON%" -m pytest -q tests %*
exit /b %ERRORLEVEL%
