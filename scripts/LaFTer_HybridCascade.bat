@echo off
rem LaFTer on features of three transformer stages. Usage: scripts\LaFTer_HybridCascade.bat [data set] [config] [KEY VALUE ...]
call "%~dp0launch.bat" HybridCascadeLaFTer hybrid_cascade_lafter HybridCascadeLaFTer "" %*
exit /b %ERRORLEVEL%
