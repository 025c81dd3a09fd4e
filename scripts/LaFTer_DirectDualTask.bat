@echo off
rem As LaFTer_DualTask, from a random classifier: no text phase. Usage: scripts\LaFTer_DirectDualTask.bat [data set] [config] [KEY VALUE ...]
call "%~dp0launch.bat" LaFTer lafter LaFTer_DirectDualTask "TRAINER.LAFTER.MODE direct TRAINER.LAFTER.DUAL.TEMPERATURE 12.0 TEST.EVALUATOR LabelDistribution" %*
exit /b %ERRORLEVEL%
