@echo off
rem Label-free tuning of prompts, LayerNorms and a text-trained classifier. Usage: scripts\LaFTer.bat [data set] [config] [KEY VALUE ...]
call "%~dp0launch.bat" LaFTer lafter LaFTer "" %*
exit /b %ERRORLEVEL%
