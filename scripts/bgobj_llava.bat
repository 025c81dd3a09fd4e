@echo off
rem LLaVA with a background/object split. Usage: scripts\bgobj_llava.bat [RECIPE] [KEY VALUE ...]
rem RECIPE is a file name in configs\trainers\bgobj_llava (default: tiny), DATASET one in configs\datasets (default: mini_scenes).
setlocal
if not defined DATASET set "DATASET=mini_scenes"
set "WORDS=%*"
if "%~1"=="" set "WORDS=tiny"
call "%~dp0launch.bat" BgObjLLaVA bgobj_llava BgObjLLaVA "" "%DATASET%" %WORDS%
exit /b %ERRORLEVEL%
