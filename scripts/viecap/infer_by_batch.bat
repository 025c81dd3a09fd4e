@echo off
rem Captions a folder of pictures.
rem Usage: scripts\viecap\infer_by_batch.bat --image_path FOLDER --weight_path RUN_OR_WEIGHTS [FLAGS] [KEY VALUE ...]
call "%~dp0start.bat" scripts\viecap_run.py infer %*
exit /b %ERRORLEVEL%
