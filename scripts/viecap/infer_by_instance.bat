@echo off
rem Captions one picture.
rem Usage: scripts\viecap\infer_by_instance.bat --image_path FILE --weight_path RUN_OR_WEIGHTS [FLAGS] [KEY VALUE ...]
call "%~dp0start.bat" scripts\viecap_run.py infer %*
exit /b %ERRORLEVEL%
