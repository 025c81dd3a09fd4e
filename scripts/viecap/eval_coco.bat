@echo off
rem Captions COCO's test pictures, and scores them.
rem Usage: scripts\viecap\eval_coco.bat EXPERIMENT GPU "OTHER FLAGS" EPOCH [KEY VALUE ...]   EPOCH counts from 0.
setlocal
cd /d "%~dp0..\.."
call "%~dp0start.bat" scripts\viecap_run.py eval --device %~2 --clip_model ViT-B/32 --language_model gpt2 ^
  --continuous_prompt_length 10 --clip_project_length 10 --top_k 3 --threshold 0.4 --using_image_features ^
  --name_of_datasets coco --path_of_val_datasets ./annotations/coco/test_captions.json ^
  --name_of_entities_text coco_entities --image_folder ./annotations/coco/val2014/ ^
  --prompt_ensemble --using_hard_prompt --soft_prompt_first ^
  --weight_path "checkpoints/%~1/coco_prefix-00%~4.pt" --out_path "checkpoints/%~1" --log_dir "logs/%~1" %~3 %5 %6 %7 %8 %9
exit /b %ERRORLEVEL%
