"""Config files: everything they can build, the published recipes, and the starter set."""

import dataclasses
import doctest
import importlib
import inspect
import json
import subprocess
import sys
from collections import Counter

import pytest
from absl import flags
from ml_collections import config_dict, config_flags

from alpacare_jax.data import prompts
from alpacare_jax.training.config import RunConfig
from common import records, sections
from common.text.prompt_file import Prompt
from configs import ablations, alpacare, baselines, common
from datagen.config import DATAGEN_PROMPTS, DatagenConfig
from datagen.writing import requests
from evaluation.config import EvaluationConfig
from evaluation.judging.judges import Judge
from launch.paper.config import PaperConfig
from tests.conftest import REPOSITORY

TRAINING = {
    "ablations": [None],
    "alpacare": [
        None,
        "",
        *alpacare.VARIANTS,
        *(f"{v},data={d}" for v in alpacare.VARIANTS for d in alpacare.DATA),
        "data=alpaca",
        "variant=llama2-13b",
        "data=alpaca,variant=llama-13b",
    ],
    "dpo": [None, "", "models/other", "models/other,data=pairs.jsonl"],
    "finetune": [
        None,
        "",
        "models/other",
        "models/other,data=data/other.jsonl",
        "rank=8",
        "models/other,rank=16,base=nf4",
    ],
    "baselines": [
        None,
        *baselines.ROWS,
        "medalpaca-7b,data=mine.json",
        "chatdoctor,checkpoint=models/other",
    ],
    "quickstart": [None, "", "dir=/tmp/elsewhere", "short"],
}
"""Config files of alpacare_jax.train, with every argument that they read."""
CASES = [(name, arg) for name, args in TRAINING.items() for arg in args]


def build(name: str, arg: str | None = None) -> config_dict.ConfigDict:
    return importlib.import_module(f"configs.{name}").get_config(arg)


def from_flags(*args: str) -> config_dict.ConfigDict:
    """The config as a command sees it, with absl's overrides."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train", *args])  # ml_collections looks for overrides there
        values(sys.argv)
        return values.config


# Every file, every argument.


@pytest.mark.parametrize("name, arg", CASES)
def test_every_argument_builds_a_run(name, arg):
    config = sections.build(RunConfig, build(name, arg).to_dict())
    if config.model.variant:
        assert config.data.max_length <= config.model.shape().max_position_embeddings
    assert config.data.template in prompts.TEMPLATES


def test_every_file_is_known_here():
    """A new config file belongs into the table above, or is another package's."""
    found = {path.stem for path in (REPOSITORY / "configs").glob("*.py")}
    assert found - {"__init__", "common", "datagen", "evaluation", "paper"} == set(TRAINING)


@pytest.mark.parametrize("name", TRAINING)
def test_files_load_by_path_and_can_be_overridden(name):
    path = REPOSITORY / "configs" / f"{name}.py"
    config = from_flags(
        f"--config={path}",
        "--config.optimizer.learning_rate=3e-5",
        "--config.sharding.rules.kv_heads=",
        "--config.sharding.rules.layers=fsdp",
        "--config.train.tensorboard=True",
    )
    run = sections.build(RunConfig, config.to_dict())
    assert run.optimizer.learning_rate == 3e-5
    assert run.sharding.rules["kv_heads"] == "", "what the error about a bad length advises"
    assert run.sharding.rules["layers"] == "fsdp"
    assert run.train.tensorboard is True


def sweeps(name: str) -> list[str]:
    functions = vars(importlib.import_module(f"configs.{name}")).items()
    return [
        key
        for key, value in functions
        if inspect.isfunction(value) and [*inspect.signature(value).parameters] == ["add"]
    ]


@pytest.mark.parametrize(
    "name, arg, sweep", [(*case, sweep) for case in CASES for sweep in sweeps(case[0])]
)
def test_sweeps_build(name, arg, sweep):
    module = importlib.import_module(f"configs.{name}")
    queued = []
    getattr(module, sweep)(lambda **overrides: queued.append(overrides))
    assert len(queued) > 1
    assert len({json.dumps(overrides, sort_keys=True) for overrides in queued}) == len(queued)
    for overrides in queued:
        config = module.get_config(arg)
        config.update_from_flattened_dict(overrides)
        run = sections.build(RunConfig, config.to_dict())
        for key, value in overrides.items():
            section, name_of_key = key.split(".")
            assert getattr(getattr(run, section), name_of_key) == value


def test_the_ablations_of_the_paper_are_sweeps():
    assert sweeps("ablations") == ["data_size", "diversity", "backbones"]
    defaults = {"sizes": ablations.SIZES, "topics": ablations.TOPICS}
    source = (REPOSITORY / "launch/paper/subsets.py").read_text()
    for flag, values in defaults.items():
        written = json.dumps([str(value) for value in values])
        assert f'DEFINE_list("{flag}", {written}' in source, "the files of the sweeps"


def test_the_recipe_has_a_sweep_around_its_own_rate():
    rates = []
    alpacare.sweep(lambda **overrides: rates.append(overrides["optimizer.learning_rate"]))
    assert {rate for _, rate in alpacare.EPOCHS_AND_RATE.values()} < set(rates)


@pytest.mark.parametrize("config", [RunConfig, DatagenConfig, EvaluationConfig, PaperConfig])
def test_every_key_is_documented_where_it_is_declared(config):
    keys = list(sections.keys(config))
    assert len(keys) >= 20
    assert [key.name for key in keys if not key.comment] == []


QUICKSTART = {
    "model": {
        "checkpoint": "quickstart/base",
        "variant": "smollm2-135m",
        "dtype": "auto",
        "remat": "full",
        "attention": "auto",
        "loss_tokens": 256,
    },
    "lora": {
        "rank": 0,
        "alpha": 16.0,
        "rslora": False,
        "dropout": 0.0,
        "targets": "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj",
        "base": "auto",
    },
    "data": {
        "path": "datagen/starter/train.jsonl",
        "eval_path": "datagen/starter/test.jsonl",
        "eval_share": 0.0,
        "template": "alpaca",
        "loss": "template",
        "max_length": 320,
        "overlong": "error",
        "row_multiple": 320,
        "max_row_length": 320,
    },
    "optimizer": {
        "name": "adamw",
        "learning_rate": 2e-4,
        "schedule": "cosine",
        "warmup_ratio": 0.1,
        "warmup_steps": 0,
        "beta1": 0.9,
        "beta2": 0.999,
        "epsilon": 1e-8,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "first_moment": "float32",
        "offload": False,
    },
    "train": {
        "batch_size": 16,
        "epochs": 1,
        "microbatch_tokens": 640,
        "log_every": 2,
        "eval_every": 0,
        "fp8": False,
        "seed": 42,
        "samples": 0,
        "check_kernel": True,
        "tensorboard": False,
        "wandb": False,
    },
    "preference": {"beta": 0.0, "sft_weight": 0.0},
    "checkpoint": {"every_steps": 0, "keep": 1},
    "sharding": {
        "data": 1,
        "fsdp": -1,
        "tensor": 1,
        "rules": {
            "layers": "",
            "embed": "fsdp",
            "vocab": "tensor",
            "heads": "tensor",
            "kv_heads": "tensor",
            "head_dim": "",
            "ffn": "tensor",
            "norm": "",
        },
        "allow_replicated": "",
    },
    "profile": "",
}


def test_the_quickstart_is_as_measured():
    """Written as overrides of the recipe: a change of the recipe must not change it unnoticed."""
    assert build("quickstart").to_dict() == QUICKSTART


# The published recipes: AlpaCare training/training-{7b,13b}.sh, stanford_alpaca README.

PUBLISHED = {"7b": (3, 2e-5), "13b": (5, 1e-5)}  # epochs, learning rate


@pytest.mark.parametrize("variant", ["llama-7b", "llama-13b", "llama2-7b", "llama2-13b"])
@pytest.mark.parametrize("dataset, max_length", [("alpacare", 1024), ("alpaca", 512)])
def test_the_recipe_is_the_published_one(variant, dataset, max_length):
    config = sections.build(RunConfig, build("alpacare", f"{variant},data={dataset}").to_dict())
    epochs, learning_rate = PUBLISHED[variant.split("-")[1]]
    assert config.model.variant == variant
    assert config.train.epochs == epochs
    assert config.train.batch_size == 128
    assert config.data.max_length == max_length
    assert config.data.template == "alpaca"
    assert config.data.overlong == "truncate"
    assert (config.data.eval_path, config.data.eval_share) == ("", 0.0)
    assert dataclasses.asdict(config.optimizer) == {
        "name": "adamw",
        "learning_rate": learning_rate,
        "schedule": "cosine",
        "warmup_ratio": 0.03,
        "warmup_steps": 0,
        "beta1": 0.9,
        "beta2": 0.999,
        "epsilon": 1e-8,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "first_moment": "float32",
        "offload": False,
    }


def test_the_four_models_and_two_data_sets_of_the_paper():
    assert alpacare.VARIANTS == ("llama-7b", "llama-13b", "llama2-7b", "llama2-13b")
    assert set(alpacare.DATA) == {"alpacare", "alpaca"}
    assert build("alpacare").model.variant == "llama-7b"
    assert build("alpacare").data.max_length == 1024


# What is wrong is named, with what would be right.


@pytest.mark.parametrize(
    "arg, message",
    [
        ("llama-8b", r"unknown variant 'llama-8b'; choose from llama-7b, llama-13b, llama2-7b"),
        ("llama-7b,data=medinstruct", r"unknown data 'medinstruct'; choose from alpacare, alpaca"),
        ("llama-7b,dat=alpaca", r"unknown config argument 'dat'; choose from variant, data"),
        ("llama-7b,alpaca", r"unknown config argument 'alpaca'; choose from variant, data"),
    ],
)
def test_unknown_arguments(arg, message):
    with pytest.raises(ValueError, match=message):
        build("alpacare", arg)


@pytest.mark.parametrize("arg", [None, "medicine,small", "law", "law,small"])
def test_seeds_and_prompts_of_every_domain_load(arg):
    config = sections.build(DatagenConfig, build("datagen", arg).to_dict())
    seeds = records.read_tasks(REPOSITORY / config.tasks.seeds)
    prompts = [
        Prompt.read(name if name[-4:] != ".txt" else f"{REPOSITORY}/{name}", DATAGEN_PROMPTS)
        for name in (config.tasks.prompt, config.responses.prompt, config.responses.rating_prompt)
    ]
    if "law" in (arg or ""):
        assert len(seeds) == 20
        assert not any("medic" in f"{p.system}{p.user}".lower() for p in prompts)
    rules = Prompt.read(f"{REPOSITORY}/configs/domains/law/tasks.txt", DATAGEN_PROMPTS).user
    law = records.read_tasks(REPOSITORY / "configs/domains/law/seeds.jsonl")
    assert {seed.type for seed in law} == {type_ for type_ in TYPES_OF_LAW if type_ in rules}
    tasks = requests.Teacher(config.tasks, prompts[0], seeds)
    assert seeds[0].topic and tasks.request(seeds[:2]).user
    with pytest.raises(ValueError, match="unknown domain 'physics'; choose from medicine, law"):
        build("datagen", "physics")


def test_a_small_judge_is_one_of_ours():
    config = sections.build(EvaluationConfig, build("evaluation", "small").to_dict())
    judge = Judge.load(config.judges)
    assert "C" not in judge.request("I", "A", "B").user.split()
    law = Judge.load(f"explained={REPOSITORY}/configs/domains/law/judge.txt")
    assert law.name == "judge"


def test_unknown_argument_of_the_quickstart():
    with pytest.raises(ValueError, match=r"unknown config argument 'folder'; choose from dir"):
        build("quickstart", "folder=x")


def test_doctests():
    assert doctest.testmod(common).failed == 0


@pytest.mark.parametrize(
    "arg, values",
    [
        (None, {"size": 3, "rate": 0.5, "fast": False, "name": "x"}),
        ("7", {"size": 7}),
        ("7,fast", {"size": 7, "fast": True}),
        ("size=7,rate=1e-3,name=a=b", {"size": 7, "rate": 1e-3, "name": "a=b"}),
        ("fast=false", {"fast": False}),
        ("fast=1", {"fast": True}),
    ],
)
def test_parse_arg(arg, values):
    got = common.parse_arg(arg, positional="size", size=3, rate=0.5, fast=False, name="x")
    assert values.items() <= got.to_dict().items()


@pytest.mark.parametrize(
    "arg, message",
    [
        ("size=three", "config argument size must be int, not 'three'"),
        ("rate=fast", "config argument rate must be float, not 'fast'"),
        ("fast=maybe", "config argument fast must be true or false, not 'maybe'"),
        ("fast,7", "unknown config argument '7'"),
    ],
)
def test_parse_arg_on_bad_values(arg, message):
    with pytest.raises(ValueError, match=message):
        common.parse_arg(arg, size=3, rate=0.5, fast=False)


def changed(key: str, value) -> dict:
    content = build("quickstart").to_dict()
    *parents, last = key.split(".")
    section = content
    for parent in parents:
        section = section[parent]
    if value is None:
        del section[last]
    else:
        section[last] = value
    return content


@pytest.mark.parametrize(
    "key, value, message",
    [
        (
            "optimizer.epsilom",
            1.0,
            r"config\.optimizer has no key 'epsilom'; did you mean 'epsilon'",
        ),
        ("modle", {}, "config has no key 'modle'; did you mean 'model'"),
        ("train.xyz", 1, r"config\.train has no key 'xyz'; choose from batch_size, epochs"),
        ("train.epochs", None, r"config\.train is missing epochs"),
        ("train", None, "config is missing train"),
        ("model.variant", "llama-8b", r"model\.variant is 'llama-8b'; choose from llama-7b"),
        (
            "model.remat",
            "some",
            r"model\.remat is 'some'; choose from auto, none, context, dots, full",
        ),
        ("model.dtype", "fp16", r"model\.dtype is 'fp16'; choose from auto, float32, bfloat16"),
        ("model.loss_tokens", 0, r"model\.loss_tokens must be at least 1"),
        ("train.batch_size", 0, r"train\.batch_size must be at least 1, not 0"),
        ("train.epochs", -1, r"train\.epochs must be at least 1, not -1"),
        ("train.log_every", 0, r"train\.log_every must be at least 1, not 0"),
        ("train.eval_every", -1, r"train\.eval_every must be at least 0"),
        ("optimizer.schedule", "wsd", r"optimizer\.schedule is 'wsd'; choose from cosine"),
        ("data.overlong", "cut", r"data\.overlong is 'cut'; choose from truncate, drop, error"),
        ("checkpoint.keep", 0, r"checkpoint\.keep at least 1"),
        ("sharding.fsdp", 0, "give positive sizes, one may be -1"),
    ],
)
def test_bad_configs_are_named(key, value, message):
    with pytest.raises(ValueError, match=message):
        sections.build(RunConfig, changed(key, value))


def test_a_misspelt_override_is_an_error():
    path = REPOSITORY / "configs" / "quickstart.py"
    with pytest.raises(AttributeError, match="learning_rate"):
        from_flags(f"--config={path}", "--config.optimizer.learning_rat=1")


def test_a_misspelt_override_is_one_readable_line(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "alpacare_jax.train",
            "--config=configs/quickstart.py",
            f"--workdir={tmp_path}/w",
            "--config.optimizer.learning_rat=1",
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ") and "learning_rate" in done.stderr
    assert "AttributeError" not in done.stderr and "\\n" not in done.stderr


# The quickstart's data.

STARTER = REPOSITORY / "datagen" / "starter"
TYPES = {
    "Text Generation",
    "Open Q&A",
    "Chat",
    "Rewrite",
    "Summarization",
    "Classification",
    "USMLE Style Q&A",
    "Multiple-Choice Q&A",
    "Single-Hop Reasoning",
    "Multi-Hop Reasoning",
}
"""AlpaCare's ten formats, rule 4 of its generation prompt."""


TYPES_OF_LAW = TYPES - {"USMLE Style Q&A"} | {"Bar Exam Style Q&A"}


def starter(name: str) -> list[dict]:
    return [json.loads(line) for line in (STARTER / f"{name}.jsonl").read_text().splitlines()]


def test_the_paths_of_the_quickstart_are_in_the_repository():
    config = build("quickstart")
    for path in (config.data.path, config.data.eval_path):
        assert (REPOSITORY / path).is_file()
        assert (REPOSITORY / path).parent == STARTER
    train = records.read_examples(REPOSITORY / config.data.path)
    assert len(train) // config.train.batch_size >= 5


@pytest.mark.parametrize("name, least", [("seeds", 60), ("train", 200), ("test", 30)])
def test_a_starter_file_keeps_the_contract(name, least):
    items = starter(name)
    assert len(items) >= least
    fields = {"id", "instruction", "input", "type", "topic", "view", "difficulty", "source"}
    for item in items:
        assert item.keys() == fields | ({"output"} if name != "seeds" else set()), item["id"]
        assert item["difficulty"] in range(1, 6)
        assert type(item["difficulty"]) is int
        texts = fields - {"input", "difficulty"} | (item.keys() & {"output"})
        assert all(isinstance(item[f], str) and item[f].strip() for f in texts), item["id"]
        assert isinstance(item["input"], str)
        assert "demonstration" in item["source"]
        assert "not clinician-reviewed" in item["source"]
    assert len({item["id"] for item in items}) == len(items)
    assert len({(item["instruction"], item["input"]) for item in items}) == len(items)
    read = records.read_examples(STARTER / f"{name}.jsonl", answered=name != "seeds")
    assert [example.input for example in read] == [item["input"] for item in items]


@pytest.mark.parametrize("name", ["seeds", "train", "test"])
def test_a_starter_file_is_varied(name):
    items = starter(name)
    assert {item["type"] for item in items} == TYPES
    assert {item["difficulty"] for item in items} == {1, 2, 3, 4, 5}
    assert len({item["topic"] for item in items}) >= 10
    assert len({item["view"] for item in items}) >= 5
    assert any(item["input"] for item in items)
    assert any(not item["input"] for item in items)


def test_no_test_item_is_in_the_training_set_or_near_one():
    """ROUGE-L F over 0.7, the limit of AlpaCare's own de-duplication, on instruction and input."""
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
    tokenizers = pytest.importorskip("rouge_score.tokenizers")
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)

    def whole(item):
        return f"{item['instruction']} {item['input']}".strip()

    train, test = starter("train"), starter("test")
    assert not {whole(item) for item in train} & {whole(item) for item in test}
    assert not {item["output"] for item in train} & {item["output"] for item in test}
    words = tokenizers.DefaultTokenizer(use_stemmer=False).tokenize
    tokens = {item["id"]: Counter(words(whole(item))) for item in train + test}
    close = []
    for one in test:
        for other in train:
            a, b = tokens[one["id"]], tokens[other["id"]]
            # The common words bound the longest common subsequence: most pairs need no scoring.
            if 2 * (a & b).total() / (a.total() + b.total()) > 0.7:
                score = scorer.score(whole(one), whole(other))["rougeL"].fmeasure
                if score > 0.7:
                    close.append((one["id"], other["id"], score))
    assert close == []
