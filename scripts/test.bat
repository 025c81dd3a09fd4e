@echo off
rem Runs the test suite in its own environment, from any folder. Usage: scripts\test.bat [pytest arguments]
setlocal
call "%~dp0env.bat" all || exit /b 1
cd /d "%ROOT%"
"%VENV_PYTHON%" -m pytest -q tests %*
exit /b %ERRORLEVEL%
