@echo off
rem Called by the launchers: start.bat PROGRAM [WORDS ...] runs a program of the checkout.
rem PYTHON is the interpreter when there is no .venv.
setlocal
for %%I in ("%~dp0..\..") do set "ROOT=%%~fI"
if not defined PYTHON set "PYTHON=python"
if exist "%ROOT%\.venv\Scripts\python.exe" set "PYTHON=%ROOT%\.venv\Scripts\python.exe"
"%PYTHON%" "%ROOT%"\%*
exit /b %ERRORLEVEL%
