@echo off
rem The baseline: class texts against image features. Usage: scripts\zero_shot.bat [data set] [config] [KEY VALUE ...]
call "%~dp0launch.bat" ZeroshotCLIP zeroshot_clip ZeroshotCLIP "" %*
exit /b %ERRORLEVEL%
