"""Recipes and flags of `train`: values, inheritance, help, and messages on wrong usage."""

import dataclasses
import json
import re

import pytest
import torch
import transformers

from modeling_vit_mnist.cli.arguments import RENAMED
from modeling_vit_mnist.cli.errors import UsageError
from modeling_vit_mnist.training.arguments import parse_arguments
from modeling_vit_mnist.training.initialization import build_model
from modeling_vit_mnist.training.refusals import REFUSED
from modeling_vit_mnist.training.train import train
from modeling_vit_mnist.training.trainer import VitMnistTrainer

from .conftest import QUICK, ROOT, TINY, arguments

CONFIGS = ROOT / "configs"
TINY_WARPS = {"max_translate": 1, "max_rotation": 8, "max_scale_jitter": 0.08, "max_shear": 6, "augment_until": 0.9}
SHARED = {
    "image_size": 28, "patch_size": 7, "initializer": "xavier_uniform", "attn_implementation": "eager",
    "lr_scheduler_type": "cosine_warmup_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-5}, "max_grad_norm": 0,
    "per_device_eval_batch_size": 1000, "seed": 0, "logging_strategy": "epoch", "load_best_model_at_end": True,
    "save_total_limit": 2, "dataloader_pin_memory": False, "dataloader_drop_last": False, "report_to": [],
    "logging_nan_inf_filter": False, "ddp_find_unused_parameters": False, "remove_unused_columns": False,
}  # fmt: skip
NARROW = {
    "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
    "initializer_range": 0.5, "whiten_patches": True, "per_device_train_batch_size": 256, "bf16": False,
    "metric_for_best_model": "accuracy", "greater_is_better": True, "weight_decay": 0, "elastic_std": 0,
}  # fmt: skip
NATURAL = NARROW | {
    "optim": "natural_gradient", "learning_rate": 0.05, "damping": 0.01, "final_damping": 0.0005,
    "fisher_update_interval": 200, "fisher_batch_size": 2048, "warmup_steps": 215, "eval_strategy": "epoch",
    "adam_beta1": 0.9, "adam_beta2": 0.99,
    "save_strategy": "epoch",
}  # fmt: skip
SMALL = {
    "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128,
    "initializer_range": 0.2, "whiten_patches": False, "max_translate": 2, "max_rotation": 12,
    "max_scale_jitter": 0.12, "max_shear": 8, "elastic_std": 1, "augment_until": 0.97,
    "optim": "adamw_torch_fused", "learning_rate": 0.003, "adam_beta2": 0.99, "weight_decay": 0.05,
    "warmup_steps": 0.1, "num_train_epochs": 100, "per_device_train_batch_size": 128, "bf16": True,
    "metric_for_best_model": "loss", "greater_is_better": False, "eval_strategy": "epoch",
}  # fmt: skip
DRAWN = {
    "do_deskew": True, "num_photographs": 20_000, "num_drawn_digits": 7_000, "num_font_digits": 12_000,
    "num_outliers": 10_000,
}  # fmt: skip
RECIPES = {
    "tiny": NATURAL | TINY_WARPS | {"num_train_epochs": 80, "do_deskew": None},
    "best": NATURAL | TINY_WARPS | {"num_train_epochs": 200, "do_deskew": True},
    "sample": NATURAL | TINY_WARPS | {
        "num_train_epochs": 400, "do_deskew": True, "elastic_std": 0.7, "augment_until": 1, "eval_strategy": "steps",
        "metric_for_best_model": "loss", "greater_is_better": False,
        "save_strategy": "steps", "eval_steps": 0.025, "save_steps": 0.025,
    },
    "fast": NATURAL | {
        "max_translate": 0.7, "max_rotation": 5, "max_scale_jitter": 0.05, "max_shear": 4, "augment_until": 0.8,
        "num_train_epochs": 20, "eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 0.1,
        "save_steps": 0.1,
    },
    "adam": NARROW | {
        "optim": "adam", "learning_rate": 0.02, "adam_beta1": 0.9, "adam_beta2": 0.99, "warmup_steps": 0.15,
        "num_train_epochs": 105, "eval_strategy": "epoch", "max_translate": 0, "max_rotation": 0, "max_shear": 0,
    },
    "finetune": NARROW | {
        "optim": "adam", "learning_rate": 0.0003, "adam_beta2": 0.99, "warmup_steps": 0.15, "num_train_epochs": 20,
        "whiten_patches": False, "metric_for_best_model": "loss", "greater_is_better": False,
    },
    "small": SMALL | DRAWN,
    "images": SMALL | dict.fromkeys(DRAWN, 0) | {"do_deskew": False, "do_frame": False},
}  # fmt: skip


def training_arguments(*argv):
    return parse_arguments([*map(str, argv)])[-1]


@pytest.fixture
def write(tmp_path):
    """Write a recipe, and return its path."""

    def write(name, text):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


@pytest.mark.parametrize("name", RECIPES)
def test_values_of_recipes(name):
    model_args, _, augmentation, args = parse_arguments(["--recipe", str(CONFIGS / f"{name}.yaml")])
    model = build_model(model_args, [str(digit) for digit in range(10)])
    assert model.num_parameters() == (105_546 if name in ("small", "images") else 1850)
    values = vars(model_args) | vars(augmentation) | vars(args)
    values |= {name: value for name, value in vars(model.config).items() if name in values}
    expected = SHARED | RECIPES[name] | {"output_dir": f"outputs/vit-{'' if name == 'images' else 'mnist-'}{name}"}
    assert {key: values[key] for key in expected} == expected
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(RECIPES)


def test_the_default_recipe_is_tiny_and_flags_win(write):
    args = training_arguments()
    assert (args.learning_rate, args.optim, args.output_dir) == (0.05, "natural_gradient", "outputs/vit-mnist-tiny")
    args = training_arguments("--learning_rate=0.5", "--optim=adamw_torch", "--lr_scheduler_kwargs", '{"min_lr": 0}')
    assert (args.learning_rate, args.optim, args.lr_scheduler_kwargs) == (0.5, "adamw_torch", {"min_lr": 0})
    mine = write("mine.json", '{"output_dir": "x", "hidden_size": 16, "learning_rate": 1e-3, "qkv_bias": false}')
    model_args, *_, args = parse_arguments(["--recipe", str(mine), "--seed", "3"])
    assert (model_args.hidden_size, model_args.qkv_bias, args.learning_rate, args.seed) == (16, False, 1e-3, 3)


def test_a_recipe_inherits_from_its_base(write):
    write("base.yaml", "learning_rate: 0.1\nseed: 5\nlr_scheduler_type: cosine_with_min_lr\n"
          "lr_scheduler_kwargs: {min_lr: 0.01}\n")  # fmt: skip
    write("middle.yaml", "base: base.yaml\nlearning_rate: 0.2\nnum_train_epochs: 7\n")
    args = training_arguments("--recipe", write("top.yaml", "base: middle.yaml\nnum_train_epochs: 8\n"))
    assert (args.learning_rate, args.seed, args.num_train_epochs) == (0.2, 5, 8)
    assert args.lr_scheduler_kwargs == {"min_lr": 0.01}
    # Another schedule does without the options of the base's.
    args = training_arguments("--recipe", write("top.yaml", "base: middle.yaml\nlr_scheduler_type: linear\n"))
    assert args.lr_scheduler_type == "linear" and not args.lr_scheduler_kwargs


def test_dashes_and_underscores_are_the_same_key(write):
    """The key of the recipe itself wins over those of its bases, however they are written."""
    write("base.yaml", "learning_rate: 0.1\n")
    write("middle.yaml", "base: base.yaml\nlearning-rate: 0.2\n")
    recipe = write("top.yaml", "base: middle.yaml\nlearning_rate: 0.3\n")
    assert training_arguments("--recipe", recipe, "--output_dir=x").learning_rate == 0.3


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"output_dir: \xff", b"\0\1", b"[" * 5000])
def test_files_that_are_no_recipes_are_refused(content, tmp_path):
    (tmp_path / "bad.yaml").write_bytes(content)
    for path in (tmp_path / "bad.yaml", tmp_path):
        with pytest.raises(UsageError, match=f"Cannot read the recipe {path}: "):
            training_arguments("--recipe", path)


@pytest.mark.parametrize("again", ["--learning_rate=2", "--learning-rate=2"])
def test_flags_that_are_given_twice_are_named(again, caplog):
    assert training_arguments("--learning_rate", "1", again, "--output_dir=x").learning_rate == 2
    assert caplog.messages == ["--learning_rate is given 2 times: only the last one counts."]


def test_values_are_those_of_yaml_1_2(write):
    text = "compile_training: no\nbf16: off\nload_best_model_at_end: yes\nlearning_rate: 1e-5\n"
    args = training_arguments("--recipe", write("mine.yaml", text))
    assert args.compile_training == "no" and args.bf16 is False and args.load_best_model_at_end is True
    assert args.learning_rate == 1e-5


@pytest.mark.parametrize(("kind", "end"), [("linear", 0), ("cosine", 0), ("constant", 0.05)])
@pytest.mark.parametrize("recipe", ["tiny", "small"])
def test_another_schedule_drops_the_options_of_the_recipes(recipe, kind, end, tmp_path):
    recipe = f"--recipe={CONFIGS / f'{recipe}.yaml'}"
    args = training_arguments(recipe, f"--output_dir={tmp_path}", "--warmup_steps=0", f"--lr_scheduler_type={kind}")
    trainer = VitMnistTrainer(model=torch.nn.Linear(1, 1), args=args, eval_dataset=[0])
    optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.05)
    scheduler = trainer.create_scheduler(10, optimizer)
    rates = []
    for _ in range(10):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[-1] == pytest.approx(end) and (kind != "linear" or rates[4] == pytest.approx(0.025))


def test_another_metric_selects_by_its_own_direction(tmp_path):
    """The loss of images.yaml has to fall, an accuracy has to rise."""
    flags = [f"--recipe={CONFIGS / 'images.yaml'}", "--metric_for_best_model=accuracy", "--num_train_epochs=3"]
    results = train(*arguments(tmp_path, *flags, "--hidden_size=8", "--bf16=False", "--learning_rate=0.02"))
    history = json.loads((tmp_path / "history.json").read_text())["log_history"]
    accuracies = [entry["eval_accuracy"] for entry in history if "eval_accuracy" in entry]
    assert len(set(accuracies)) > 1 and results["eval_accuracy"] == max(accuracies)


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_old_names_are_answered_with_the_new_ones(old, new, write):
    with pytest.raises(UsageError, match=f"Unknown flag --{old}: its name is now --{new}."):
        training_arguments(f"--{old}=1")
    with pytest.raises(UsageError, match=f"Unknown key in mine.yaml: {old}: its name is now {new}."):
        training_arguments("--recipe", write("mine.yaml", f"{old}: 1\n"))


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        ([], {"learning_rate": "0.05", "hidden_size": "8", "max_rotation": "8", "optim": "natural_gradient"}),
        (["--recipe=configs/adam.yaml"], {"learning_rate": "0.02", "whiten_patches": "True", "max_rotation": "0.0"}),
        (["--recipe=configs/small.yaml"], {"learning_rate": "0.003", "hidden_size": "64", "seed": "0"}),
    ],
)
def test_help_is_short_and_shows_the_recipes_values(argv, shown, run_script):
    done = run_script("run_train.py", "--help", *argv)
    assert done.code == 0 and len(done.out.splitlines()) < 120
    for name, value in shown.items():
        assert re.search(rf"--{name} {value} ", done.out), name
    assert "torch_compile_backend" not in done.out


def test_help_all_lists_the_flags_of_transformers(run_script):
    done = run_script("run_train.py", "--help-all")
    assert done.code == 0 and {"--torch_compile_backend", "--elastic_std", "--recipe"} <= set(done.out.split())


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--learning_rat", "1"], "Unknown flag --learning_rat: did you mean --learning_rate"),
        (["--learning_rate", "fast"], "learning-rate: invalid float value: 'fast'"),
        (["stray"], "Unexpected argument 'stray'"),
        (["--learning_rate", "nan"], "learning-rate: the number must be finite, got 'nan'"),
        (["--damping=-inf"], "--damping: the number must be finite, got '-inf'"),
        (["--dataset_name="], "dataset-name: the value is empty"),
        (["--output_dir", " "], "output-dir: the value is empty"),
        (["--seed", "1e3"], "--seed: invalid int value: '1e3'"),
        (["--seed", str(2**63)], f"--seed: {2**63} is too large"),
        (["--bf16", "maybe"], "--bf16: Truthy value expected: got maybe"),
        (["--num_train_epochs", "0"], "--num_train_epochs must be positive, got 0"),
        (["--per_device_train_batch_size", "0"], "--per_device_train_batch_size must be positive, got 0"),
        (["--optim", "adm"], "adm"),
        (["--recipe", "/nowhere.yaml"], "Cannot read the recipe /nowhere.yaml"),
        (["--hidden_size", "9"], "2 heads for a width of 9"),
        (["--hidden_act", "gleu"], "got 'gleu'"),
        (["--output_dir", "/dev/null/x"], "Cannot write to the folder /dev/null/x"),
        (["--dataset_name", "/nowhere"], "No dataset folder '/nowhere'"),
        (["--model_name_or_path", "/nowhere"], "No checkpoint folder '/nowhere'"),
        (
            ["--model_name_or_path", str(ROOT / "vit-mnist-small"), "--hidden_size=8"],
            "--hidden_size 8 does not match the checkpoint .*vit-mnist-small, which has 64",
        ),
        (["--push_to_hub"], "Refusing to push: this run uses the bundled 5,000-image sample"),
        (["--resume_from_checkpoint", "/nowhere"], "Cannot resume from /nowhere: there is no such folder"),
    ],
)
def test_wrong_usage_gets_one_line_and_exit_code_2(argv, says, tmp_path, run_script):
    done = run_script("run_train.py", *QUICK, f"--output_dir={tmp_path / 'run'}", *argv)
    assert done.code == 2
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in done.err
    assert re.search(says, lines[0]), lines[0]


NOT_SUPPORTED = [
    "--accelerator_config={\"split_batches\": true}", "--auto_find_batch_size", "--batch_eval_metrics",
    "--bf16_full_eval", "--dataloader_in_order=False", "--debug=underflow_overflow", "--deepspeed=zero2.json",
    "--enable_jit_checkpoint", "--eval_use_gather_object", "--fp16_full_eval", "--fsdp=full_shard",
    "--fsdp_config={\"min_num_params\": 1}", "--hub_always_push", "--hub_revision=x", "--hub_strategy=checkpoint",
    "--ignore_data_skip", "--include_for_metrics=inputs", "--label_names=x", "--length_column_name=x",
    "--optim_target_modules=all-linear", "--prediction_loss_only", "--remove_unused_columns", "--save_only_model",
    "--use_cache", "--use_liger_kernel",
]  # fmt: skip
OUT_OF_RANGE = {
    "learning_rate": ["-1", "0", "nan", "inf"], "num_train_epochs": ["nan", "inf", "-1"], "max_steps": ["0", "-2"],
    "warmup_steps": ["nan", "-1"], "weight_decay": ["nan", "-1"], "adam_beta1": ["nan", "1.5"], "adam_beta2": ["-1"],
    "adam_epsilon": ["nan", "-1"], "max_grad_norm": ["nan", "-1"], "label_smoothing_factor": ["nan", "-1", "1"],
    "gradient_accumulation_steps": ["0"], "eval_accumulation_steps": ["0"], "logging_steps": ["0", "nan"],
    "eval_steps": ["-5"], "save_steps": ["0"], "eval_delay": ["nan", "-1"], "seed": ["-1", "4294967296"],
    "data_seed": ["-1"], "damping": ["nan", "0"], "final_damping": ["inf"], "fisher_batch_size": ["0"],
    "dataloader_num_workers": ["-1"], "torch_empty_cache_steps": ["0"], "neftune_noise_alpha": ["nan"],
    "layer_norm_eps": ["nan"], "hidden_dropout_prob": ["nan"], "initializer_range": ["inf"], "max_rotation": ["nan"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        *[(flag, f"{flag.split('=')[0]} .* is not supported: ") for flag in NOT_SUPPORTED],
        *[(f"--{name}={value}", name) for name, values in OUT_OF_RANGE.items() for value in values],
        ("--lr_scheduler_type=cosine_with_min_lr", "min_lr or min_lr_rate should be set"),
        ("--lr_scheduler_type=warmup_stable_decay", "'num_decay_steps'"),
        ('--lr_scheduler_kwargs={"min_lr": NaN}', "--lr_scheduler_kwargs must be finite"),
        ('--lr_scheduler_kwargs={"power": 2}', "unexpected keyword argument 'power'"),
        ('--lr_scheduler_kwargs={"min_lr_rate": 5}', "must lie in .0, 1., got {'min_lr_rate': 5}"),
        ('--lr_scheduler_kwargs={"min_lr": "x"}', "with --lr_scheduler_kwargs"),
        ("--do_train=no", "--do_train no is not supported: a run trains and evaluates"),
        ("--do_eval=False", "--do_eval no is not supported"),
        ("--lr_scheduler_kwargs=5", "with --lr_scheduler_kwargs 5: "),
        ('--lr_scheduler_type=constant --lr_scheduler_kwargs={"min_lr":0}', "constant has no options"),
        ("--optim=galore_adamw", "for large networks"),
        ("--optim=grokadamw", "pip install grokadamw"),
        ("--optim_args=momentum=0.9", "--optim adam: --optim_args momentum has no effect"),
        ("--optim=natural_gradient --optim_args=eps=0.5", "--optim natural_gradient: --optim_args eps has no effect"),
        ("--optim_args=eps=0.5", "--optim adam: --optim_args eps has no effect"),
        ("--optim=sgd --optim_args=momentun=0.9", "--optim sgd: --optim_args momentun has no effect"),
        ("--optim=natural_gradient --weight_decay=0.1", "natural_gradient has no weight decay"),
        (
            "--optim=natural_gradient --activation_checkpointing",
            "natural_gradient cannot be combined with gradient checkpointing",
        ),
        ("--metric_for_best_model=f1", "one of accuracy, macro_f1, expected_calibration_error, loss, got f1"),
        ("--metric_for_best_model=runtime", "got runtime"),
        ("--report_to=clearml", "--report_to clearml needs a package that is missing: run pip install clearml"),
        ("--report_to=nonsense", "--report_to must be one of .*tensorboard.*, got nonsense"),
        ("--fp16", "--fp16 needs a GPU"),
        ("--tf32=True", "--tf32 requires"),
        ("--eval_strategy=no", "save and eval strategy to match"),
        ("--eval_strategy=steps --save_strategy=steps --eval_steps=5 --save_steps=7", "round multiple"),
        ("--dataloader_persistent_workers", "persistent_workers option needs num_workers > 0"),
        ("--dataloader_prefetch_factor=2", "--dataloader_prefetch_factor can only be set"),
        ("--dataloader_multiprocessing_context=fork", "multiprocessing_context can only be used"),
        ("--train_sampling_strategy=group_by_length", "group_by_length is for texts"),
        ("--train_sampling_strategy=batch_rebalance", "batch_rebalance is for texts"),
        ("--streaming --dataloader_drop_last", "drop --dataloader_drop_last"),
        ("--streaming --train_sampling_strategy=sequential", "--train_sampling_strategy"),
        ("--ddp_backend=gloo", "--ddp_backend needs several processes"),
        ("--compile_training=yes --torch_compile_mode=default", "cannot be combined with --torch_compile"),
    ],
)
def test_what_training_cannot_obey_is_refused_before_the_work(flags, says, tmp_path):
    with pytest.raises(UsageError) as refused:
        arguments(tmp_path / "run", *re.split(" (?=--)", flags))
    assert re.search(says, str(refused.value)) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("USE_FSDP", "true"), ("USE_DEEPSPEED", "true"), ("USE_MEGATRON_LM", "1"), ("USE_PARALLELISM_CONFIG", "true"),
        ("DYNAMO_BACKEND", "INDUCTOR"), ("MIXED_PRECISION", "fp8"), ("GRADIENT_ACCUMULATION_STEPS", "2"),
    ],
)  # fmt: skip
def test_what_accelerate_is_asked_for_in_vain_is_refused(variable, value, tmp_path, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_{variable}", value)
    with pytest.raises(UsageError, match=f"ACCELERATE_{variable}={value} is not supported"):
        arguments(tmp_path / "run")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--optim=adam", "--damping=5"], "--damping has no effect with --optim adam."),
        (["--optim=sgd", "--adam_beta1=0.5"], "--adam_beta1 has no effect with --optim sgd."),
        (
            ["--lr_scheduler_type=constant", "--warmup_steps=5"],
            "--warmup_steps has no effect with --lr_scheduler_type",
        ),
        (["--whiten_patches=yes", f"--model_name_or_path={TINY}"], "--whiten_patches has no effect with --model_name"),
        (["--optim=adamw_torch", "--adam_beta1=0.5", "--warmup_steps=5"], None),
        (["--optim=natural_gradient", "--damping=5", "--lr_scheduler_type=constant", "--warmup_steps=5"], None),
    ],
)
def test_flags_without_effect_are_named(flags, says, tmp_path, caplog):
    arguments(tmp_path / "run", *flags)
    assert (says in caplog.text) if says else not caplog.text


def test_the_precision_of_accelerate_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert arguments(tmp_path)[-1].bf16
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert not arguments(tmp_path)[-1].bf16


def test_a_missing_reporter_is_named_before_the_data_is_loaded(tmp_path, monkeypatch, run_script):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_tensorboard_available", lambda: False)
    flags = ["--report_to=tensorboard", "--dataset_name=/nowhere", f"--output_dir={tmp_path / 'run'}"]
    done = run_script("run_train.py", *flags)
    assert done.code == 2 and not (tmp_path / "run").exists()
    assert "--report_to tensorboard needs a package that is missing: run pip install 'vit-mnist[logging]'." in done.err


@pytest.mark.parametrize(
    ("metric", "mode"), [("accuracy", "max"), ("loss", "min"), ("expected_calibration_error", "min")]
)
@pytest.mark.parametrize("schedule", ["reduce_lr_on_plateau", "greedy"])
def test_a_schedule_that_watches_the_metric_knows_its_direction(metric, mode, schedule, tmp_path):
    flags = [f"--lr_scheduler_type={schedule}", f"--metric_for_best_model={metric}"]
    args = training_arguments(*flags, f"--output_dir={tmp_path}")
    assert args.lr_scheduler_kwargs["mode"] == mode and args.greater_is_better is (mode == "max")
    trainer = VitMnistTrainer(model=torch.nn.Linear(1, 1), args=args, eval_dataset=[0])
    assert trainer.create_scheduler(10, torch.optim.SGD(trainer.model.parameters(), lr=0.05)).mode == mode


@pytest.mark.skipif(not transformers.__version__.startswith("5.23."), reason="lists the fields of transformers 5.23")
def test_every_argument_of_transformers_is_accounted_for():
    """Refused, read by this package, or tried in a test."""
    names = ("test_recipes.py", "test_training.py", "test_distributed.py")
    tests = "".join((ROOT / "tests" / name).read_text() for name in names)
    package = "".join(path.read_text() for path in (ROOT / "modeling_vit_mnist").rglob("*.py"))
    untried = {field.name for field in dataclasses.fields(transformers.TrainingArguments)} - set(REFUSED)
    untried = {name for name in untried if f"--{name}" not in tests and name not in package}
    assert untried == set()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("learning_rat: 1", r"Unknown key in bad.yaml: learning_rat: did you mean learning_rate\?"),
        ("- a\n- b", "must hold lines of 'name: value', got list"),
        ("a: [", "Cannot read the recipe .*bad.yaml"),
        ("learning_rate: fast", "invalid float value"),
        ("base: bad.yaml", "bad.yaml has itself as a base"),
        ("base: other.yaml", "bad.yaml has itself as a base"),
        ("base: missing.yaml", "Cannot read the recipe .*missing.yaml"),
        ("", "must hold lines of 'name: value', got nothing"),
        ("seed: 1\nseed: 2", "Cannot read the recipe .*bad.yaml: found duplicate key .*, in line 2"),
        ("weight_decay: 1\nweight-decay: 2", "gives weight_decay twice"),
        ("recipe: other.yaml", "Unknown key in bad.yaml: recipe"),
        ("learning_rate:", "Wrong value of learning_rate in bad.yaml: got no value"),
        ("base:", "Wrong value of base in bad.yaml: got no value"),
        ("learning_rate: .nan", "the number must be finite, got 'nan'"),
        ("learning_rate: 1e999", "the number must be finite, got 'inf'"),
        ("lr_scheduler_kwargs: {min_lr: .inf}", "got a mapping that is not JSON"),
        ("seed: 5.0", "invalid int value: '5.0'"),
        ("seed: [5]", r"Wrong value of seed in bad.yaml: got the list \[5\]"),
        ("streaming: []", r"Wrong value of streaming in bad.yaml: got the list \[\]"),
        ("label_names: ['--seed=3']", "Wrong value of label_names in bad.yaml: got the list"),
        ("dataset_name: {a: 1}", "Wrong value of dataset_name in bad.yaml: got a mapping"),
        ("dataset_name: 1e3", "Wrong value of dataset_name in bad.yaml: got 1000.0, which is no text"),
    ],
)
def test_wrong_recipes_are_named(text, says, write):
    write("other.yaml", "base: bad.yaml")
    with pytest.raises(UsageError, match=says):
        training_arguments("--recipe", write("bad.yaml", text), "--output_dir=x")
