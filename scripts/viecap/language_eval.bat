@echo off
rem Scores a file of generated captions.
rem Usage: scripts\viecap\language_eval.bat FILE
call "%~dp0start.bat" scripts\caption_score.py --result_file_path %*
exit /b %ERRORLEVEL%
