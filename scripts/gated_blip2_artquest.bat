@echo off
rem BLIP-2 with style gates on art questions. Usage: scripts\gated_blip2_artquest.bat [RECIPE] [KEY VALUE ...]
rem RECIPE is a file name in configs\trainers\gated_blip2 (default: artquest), DATASET one in configs\datasets (default: artquest).
rem A style encoder is named by TRAINER.GATEDBLIP2.STYLE.CHECKPOINT FILE. Without any data: DATASET=mini_scenes and RECIPE tiny.
setlocal
if not defined DATASET set "DATASET=artquest"
set "WORDS=%*"
if "%~1"=="" set "WORDS=artquest"
call "%~dp0launch.bat" GatedBLIP2 gated_blip2 GatedBLIP2 "" "%DATASET%" %WORDS%
exit /b %ERRORLEVEL%
