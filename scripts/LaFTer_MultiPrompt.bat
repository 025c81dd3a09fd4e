@echo off
rem LaFTer with prompts of their own for every transformer stage. Usage: scripts\LaFTer_MultiPrompt.bat [data set] [config] [KEY VALUE ...]
call "%~dp0launch.bat" MultiLayerLaFTer multilayer_lafter MultiLayerLaFTer "" %*
exit /b %ERRORLEVEL%
