@echo off
rem Called by the launchers of single trainers: launch.bat TRAINER CONFIG_FOLDER [DATA SET] [CONFIG] [KEY VALUE ...]
rem DATA is the data root (default: data), SEED the seed (default: 1), PYTHON the interpreter when there is no .venv.
setlocal
for %%I in ("%~dp0..") do set "ROOT=%%~fI"
set "TRAINER=%~1"
set "FOLDER=%~2"
set "DATASET=%~3"
set "CONFIG=%~4"
if not defined DATASET set "DATASET=handwritten_digits"
if not defined CONFIG set "CONFIG=tiny12"
if not defined DATA set "DATA=data"
if not defined SEED set "SEED=1"
if not defined PYTHON set "PYTHON=python"
if exist "%ROOT%\.venv\Scripts\python.exe" set "PYTHON=%ROOT%\.venv\Scripts\python.exe"
set "PAIRS="
:collect
if "%~5"=="" goto run
set "PAIRS=%PAIRS% %5"
shift /5
goto collect
:run
cd /d "%ROOT%"
"%PYTHON%" train.py ^
  --trainer "%TRAINER%" ^
  --dataset-config-file "configs/datasets/%DATASET%.yaml" ^
  --config-file "configs/trainers/%FOLDER%/%CONFIG%.yaml" ^
  --root "%DATA%" ^
  --output-dir "output/%DATASET%/%TRAINER%/%CONFIG%/seed%SEED%" ^
  --seed "%SEED%" %PAIRS%
exit /b %ERRORLEVEL%
