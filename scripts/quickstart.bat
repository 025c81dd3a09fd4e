@echo off
rem The main job from a fresh clone: installs the package into .venv, then learns handwriting without a label.
rem Usage: scripts\quickstart.bat [--seeds 1 2 3] [--output DIR]   No network is needed once the packages are there.
setlocal
call "%~dp0env.bat" all || exit /b 1
"%VENV_PYTHON%" "%ROOT%\scripts\quickstart.py" %*
exit /b %ERRORLEVEL%
