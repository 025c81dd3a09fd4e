@echo off
rem One run, or base-to-new, in its place below output; skips what is finished, continues what is not.
rem Usage: scripts\run.bat DATASET TRAINER CFG SEED [SHOTS [base2new]] [KEY VALUE ...]   DATA is the data root (default: data).
setlocal
for %%I in ("%~dp0..") do set "ROOT=%%~fI"
if not defined PYTHON set "PYTHON=python"
if exist "%ROOT%\.venv\Scripts\python.exe" set "PYTHON=%ROOT%\.venv\Scripts\python.exe"
"%PYTHON%" "%ROOT%\scripts\run.py" %*
exit /b %ERRORLEVEL%
