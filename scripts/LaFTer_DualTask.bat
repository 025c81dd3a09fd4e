@echo off
rem LaFTer learns labels and emotion distributions of the data set. Usage: scripts\LaFTer_DualTask.bat [data set] [config] [KEY VALUE ...]
call "%~dp0launch.bat" LaFTer lafter LaFTer_DualTask "TRAINER.LAFTER.MODE supervised TRAINER.LAFTER.DUAL.ENABLED True TEST.EVALUATOR LabelDistribution" %*
exit /b %ERRORLEVEL%
