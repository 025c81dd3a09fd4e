@echo off
rem Runs the test suite in its own environment, from any folder. Usage: scripts\test.bat [pytest arguments]
setlocal
call "%~dp0env.bat" all || exit /b 1
cd /d "%ROOT%"
rem Tiny models: a second thread costs more than it gives.
if not defined OMP_NUM_THREADS set "OMP_NUM_THREADS=1"
rem WORKERS is the number of processes; 0 runs the tests in this one.
if not defined WORKERS set "WORKERS=2"
"%VENV_PYTHON%" -m pytest -q -n %WORKERS% --dist loadfile tests %*
exit /b %ERRORLEVEL%
