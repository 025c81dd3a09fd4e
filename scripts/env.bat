@echo off
rem Called by the launchers: sets ROOT and VENV_PYTHON, makes .venv in the checkout and installs this package there.
rem Usage: call env.bat [EXTRAS]   PYTHON names the interpreter that makes the environment (default: python).
for %%I in ("%~dp0..") do set "ROOT=%%~fI"
set "EXTRAS=%~1"
if not defined EXTRAS set "EXTRAS=all"
if not defined PYTHON set "PYTHON=python"
set "VENV_PYTHON=%ROOT%\.venv\Scripts\python.exe"

if exist "%VENV_PYTHON%" "%VENV_PYTHON%" -c "import pip" >nul 2>nul && goto install
"%PYTHON%" -c "import sys; sys.exit(sys.version_info < (3, 10))"
if errorlevel 1 (
  echo PYTHON is "%PYTHON%"; Python 3.10 or newer is needed 1>&2
  exit /b 1
)
echo Making "%ROOT%\.venv"
"%PYTHON%" -m venv "%ROOT%\.venv" || exit /b 1

:install
"%VENV_PYTHON%" "%ROOT%\scripts\install.py" "%EXTRAS%"
exit /b %ERRORLEVEL%
