@echo off
rem The paper's run on COCO.
rem Usage: scripts\viecap\train_coco.bat [GPU] [FLAGS] [KEY VALUE ...]
setlocal
cd /d "%~dp0..\.."
set "GPU=%~1"
if not defined GPU set "GPU=0"
call "%~dp0start.bat" scripts\viecap_run.py train --bs 80 --lr 0.00002 --epochs 15 --device %GPU% ^
  --random_mask --prob_of_random_mask 0.4 --clip_model ViT-B/32 --using_clip_features --language_model gpt2 ^
  --using_hard_prompt --soft_prompt_first --use_amp ^
  --path_of_datasets ./annotations/coco/coco_texts_features_ViT-B32.pickle ^
  --out_dir checkpoints/train_coco --log_dir logs/train_coco %2 %3 %4 %5 %6 %7 %8 %9
exit /b %ERRORLEVEL%
