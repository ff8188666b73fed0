"""What `audiolm study` offers, kept as text: the recipes themselves would load torch."""

EXPERIMENTS = {  # several trainings or measurements in one result
    "encoders": "audiolm_utils.study.encoders:run_or_load_encoders",
    "augmentation": "audiolm_utils.study.noise:run_or_load_noise",
    "mini-encoders": "audiolm_utils.study.mini_encoders:run_or_load_mini_encoders",
    "connector": "audiolm_utils.study.connector:run_or_load_connector",
    "ladder": "audiolm_utils.study.ladder_row:run_or_load_ladder",
    "mixture": "audiolm_utils.study.mixture_training:run_or_load_mixture_training",
    "distillation": "audiolm_utils.study.distillation:run_or_load_distillation",
    "mixture-decoding": "audiolm_utils.study.mixture:run_or_load_mixture",
    "final": "audiolm_utils.study.final_row:run_or_load_final",
    "final-full-size": "audiolm_utils.study.final_full_size:run_or_load_final_full_size",
    "on-device": "audiolm_utils.study.on_device:run_or_load_on_device",
    "training-choices": "audiolm_utils.study.training_choices:run_or_load_training_choices",
    "full-size": "audiolm_utils.study.full_size:run_or_load_full_size",
}
STUDY_HELP = """\
full recipes, the study's rows, for a GPU: full-base, full-turbo, full-no-beats, full-eat, full-distill-qwen-1.5b,
full-base-qlora, full-llama-3.2-1b-4-bit, full-llama-3.2-3b-4-bit, full-llama-3.1-8b-4-bit, full-qwen2.5-0.5b-4-bit.
They train on the annotations NAME_train.json and are scored on NAME_test.json, in DIR or in its folders, and on
LibriSpeech and Clotho as their archives unpack:
  audiolm study full-base --data-root DIR
On several GPUs, each with the whole LLM (ddp.yaml) or with a part of its layers (fsdp.yaml):
  accelerate launch --config_file configs/accelerate/ddp.yaml --num_processes 2 \\
    -m audiolm_utils study full-base --data-root DIR
Several recipes at once, each on a machine (or GPU) of a Ray cluster that shares this folder and the cache:
  audiolm study full-base full-turbo --data-root DIR --ray HOST:6379
What was interrupted goes on by the same command, and on another machine where one of the cluster died (where --fresh
was given, it starts over there). More in the README, "Full recipes".
"""
