@echo off
rem Called by the launchers of single trainers:
rem launch.bat TRAINER CONFIG_FOLDER RUN_NAME SETTINGS [DATA SET] [CONFIG] [KEY VALUE ...]
rem SETTINGS is the launcher's own KEY VALUE pairs in quotes, possibly empty; the user's come after them and win.
rem DATA is the data root (default: data), SEED the seed (default: 1), PYTHON the interpreter when there is no .venv.
setlocal
for %%I in ("%~dp0..") do set "ROOT=%%~fI"
set "TRAINER=%~1"
set "FOLDER=%~2"
set "NAME=%~3"
set "SETTINGS=%~4"
set "DATASET=%~5"
set "CONFIG=%~6"
if not defined DATASET set "DATASET=emotion6"
if not defined CONFIG set "CONFIG=vit_b32"
if not defined DATA set "DATA=data"
if not defined SEED set "SEED=1"
if not defined PYTHON set "PYTHON=python"
if exist "%ROOT%\.venv\Scripts\python.exe" set "PYTHON=%ROOT%\.venv\Scripts\python.exe"
set "PAIRS="
:collect
if "%~7"=="" goto run
set "PAIRS=%PAIRS% %7"
shift /7
goto collect
:run
cd /d "%ROOT%"
"%PYTHON%" train.py ^
  --trainer "%TRAINER%" ^
  --dataset-config-file "configs/datasets/%DATASET%.yaml" ^
  --config-file "configs/trainers/%FOLDER%/%CONFIG%.yaml" ^
  --root "%DATA%" ^
  --output-dir "output/%DATASET%/%NAME%/%CONFIG%/seed%SEED%" ^
  --seed "%SEED%" %SETTINGS% %PAIRS%
exit /b %ERRORLEVEL%
