"""The configuration tree and search spaces: what is refused and how it is said, round trips, frozen names."""

from __future__ import annotations

import random
import re

import optuna
import pytest
from helpers import tiny_config
from pydantic import ValidationError

from orchestration.config import LaunchConfig, TrainConfig
from orchestration.preflight import check_inputs
from orchestration.sweep import search_space
from orchestration.sweep.config import SweepConfig
from orchestration.sweep.search_space import Dimension, build, known_points
from orchestration.sweep.ticket import trial_config
from soflow.config import check_training, config_hash, flatten, override, parse, to_dict
from soflow.config_base import ConfigError
from soflow.config_files import read_yaml, to_yaml
from soflow.objectives.registry import OBJECTIVES

# What users, presets, records and scripts refer to. A change here is a decision.
RUN_PATHS = {
    "seed",
    "dataset.name",
    "dataset.root",
    "dataset.conditional",
    "dataset.image_size",
    "dataset.download",
    "dataset.augmentation",
    "dataset.augmentations",
    "dataset.vae",
    "dataset.loading_processes",
    "network.name",
    "network.dropout",
    "network.gradient_checkpointing",
    "objective.name",
    "objective.interpolant",
    "objective.parameterization",
    "objective.guidance_strength",
    "objective.velocity_mix",
    "objective.label_drop",
    "objective.guidance_decay_time",
    "objective.weight_power",
    "objective.weight_eps",
    "objective.flow_matching_fraction",
    "objective.gap_schedule",
    "objective.r_init",
    "objective.r_end",
    "objective.time_mean",
    "objective.time_std",
    "optimizer.name",
    "optimizer.learning_rate",
    "optimizer.warmup_steps",
    "optimizer.betas",
    "optimizer.weight_decay",
    "training.total_steps",
    "training.batch_size",
    "training.report_every",
    "training.checkpoint_every_s",
    "training.log_every",
    "training.ema_decay",
    "training.ema_every",
    "training.ema_dtype",
    "training.snapshot_every",
    "training.snapshot_lengths",
    "training.snapshot_dtype",
    "training.snapshot_gib",
    "training.precision",
    "training.quotient_precision",
    "training.compile",
    "evaluation.num_samples",
    "evaluation.nfe",
    "evaluation.sampler",
    "evaluation.times",
    "evaluation.temperature",
    "evaluation.guidance",
    "evaluation.guidance_interval",
    "evaluation.feature_network",
    "evaluation.feature_weights",
    "evaluation.batch_size",
    "evaluation.labels",
    "evaluation.reference",
    "evaluation.reference_sha256",
    "evaluation.protocol",
    "evaluation.precision_recall",
    "evaluation.inception_score",
    "evaluation.diagnostics",
    "evaluation.diagnose_every_report",
}


def test_the_paths_of_a_run_are_frozen():
    assert set(flatten(to_dict(parse({})))) == RUN_PATHS
    assert set(search_space.build(SweepConfig()).base) == RUN_PATHS


MEANFLOW = {"name": "meanflow"}
FAULTS = [
    # the values, and what the one line must say: field, value, what is allowed
    ({"evaluation": {"guidance": 2}, "dataset": {"conditional": False}}, "evaluation.guidance = 2: must be 1 with"),
    (
        {"evaluation": {"guidance": 2}, "objective": {"label_drop": 0, "guidance_strength": 1}},
        "evaluation.guidance = 2: must be 1 with objective.label_drop",
    ),
    (
        {"evaluation": {"guidance": 2, "diagnostics": ["inference_guidance"]}},
        "evaluation: guidance = 2 must be 1 with diagnostics",
    ),
    (
        {"evaluation": {"guidance_interval": [0.9, 0.1]}},
        r"evaluation: guidance_interval = \[0.9, 0.1\] must list the least t first",
    ),
    ({"evaluation": {"times": [0.3, 0.5]}}, r"evaluation: times = \[0.3, 0.5\] must decrease, from noise at 1"),
    (
        {"evaluation": {"times": [0.3], "sampler": "heun"}},
        r"evaluation: times = \[0.3\] must be left out with sampler = heun",
    ),
    (
        {"evaluation": {"times": [0.3], "nfe": [1, 4]}},
        r"evaluation: times = \[0.3\] are for 2 NFE, which nfe = \[1, 4\] lacks",
    ),
    (
        {"objective": {"flow_matching_fraction": 1.5}},
        "objective.flow_matching_fraction = 1.5: .*less than or equal to 1",
    ),
    ({"objective": {"flow_matching_fraction": -0.1}}, "objective.flow_matching_fraction = -0.1: .*or equal to 0"),
    ({"objective": MEANFLOW | {"flow_matching_fraction": 2}}, "objective.flow_matching_fraction = 2: .*or equal to 1"),
    ({"objective": {"r_init": 0.1, "r_end": 0.2}}, "objective: r_end = 0.2 must not exceed r_init = 0.1"),
    ({"objective": {"r_end": 0}}, "objective.r_end = 0: .*greater than 0"),
    ({"objective": {"r_init": 1.1}}, "objective.r_init = 1.1: .*less than or equal to 1"),
    ({"objective": {"guidance_strength": 0.9}}, "objective.guidance_strength = 0.9: .*greater than or equal to 1"),
    ({"objective": {"velocity_mix": 1.2}}, "objective.velocity_mix = 1.2: .*less than or equal to 1"),
    ({"objective": {"velocity_mix": -1}}, "objective.velocity_mix = -1: .*greater than or equal to 0"),
    ({"objective": {"label_drop": 1}}, "objective.label_drop = 1: .*less than 1"),
    (
        {"objective": {"label_drop": 0, "guidance_strength": 2}},
        "objective: label_drop = 0 must be above 0 when guidance_strength = 2 ",
    ),
    (
        {"objective": MEANFLOW | {"label_drop": 0, "guidance_kappa": 0.5}},
        "objective: label_drop = 0 must be above 0 .*guidance_kappa = 0.5",
    ),
    (
        {"objective": MEANFLOW | {"label_drop": 0, "guidance_omega": 2, "guidance_kappa": 0}},
        "objective: label_drop = 0 must be above 0 .*guidance_omega = 2",
    ),
    (
        {"objective": MEANFLOW | {"guidance_interval": (0.8, 0.2)}},
        r"objective: guidance_interval = \(0.8, 0.2\) must not end before it starts",
    ),
    ({"objective": {"gap_schedule": "sqrt"}}, "objective.gap_schedule = sqrt: .*constant.*cosine.*exponential.*linear"),
    ({"objective": {"time_mean": [1, 2]}}, "objective.time_mean"),
    (
        {"objective": {"name": "soflw"}},
        "objective.name = soflw: must be one of alpha_flow, distillation, esc, flow_matching, improved_meanflow",
    ),
    ({"objective": {"r_ned": 0.1}}, "objective.r_ned: unknown key; did you mean r_end"),
    ({"objective": MEANFLOW | {"r_end": 0.1}}, "objective.r_end: unknown key; known keys here are .*guidance_kappa"),
    ({"training": {"batch_sze": 3}}, "training.batch_sze: unknown key; did you mean batch_size"),
    ({"trainig": {}}, "trainig: unknown key; did you mean training"),
    ({"training": {"batch_size": 1}}, "training.batch_size = 1: .*greater than or equal to 2"),
    ({"training": {"total_steps": "many"}}, "training.total_steps = many: .*integer"),
    ({"training": {"ema_decay": 1}}, "training.ema_decay = 1: .*less than 1"),
    ({"training": 3}, "training = 3: "),
    ({"objective": "soflow"}, "objective = soflow: "),
    ({"dataset": {"name": "mnist"}}, "dataset.name = mnist: must be one of cifar10, digits"),
    ({"dataset": {"name": "image_folder"}}, "dataset: image_size must be set for image_folder"),
    ({"dataset": {"image_size": 16}}, "dataset: image_size = 16 must be 8 or left out for digits"),
    ({"network": {"name": "DiT-XXS/3"}}, "network.name = DiT-XXS/3: must be one of DiT-B/1, "),
    (
        {"dataset": {"name": "image_folder", "image_size": 9}, "network": {"name": "DiT-XXS/2"}},
        "network.name = DiT-XXS/2: 2 must divide the side 9 of what dataset.name = image_folder",
    ),
    ({"optimizer": {"learning_rate": 0}}, "optimizer.learning_rate = 0: .*greater than 0"),
    ({"optimizer": {"betas": (0.9, 1)}}, "optimizer.betas.1 = 1: .*less than 1"),
    ({"evaluation": {"nfe": (1, 1)}}, r"evaluation: nfe = \[1, 1\] must list distinct numbers"),
    ({"evaluation": {"nfe": (3,), "sampler": "heun"}}, r"evaluation: nfe = \[3\] must be even"),
    (
        {"evaluation": {"labels": "data"}, "dataset": {"conditional": False}},
        "evaluation.labels = data: must be balanced with dataset.conditional = False",
    ),
    ({"evaluation": {"feature_network": "vgg"}}, "evaluation.feature_network = vgg: must be one of clip, digits-cnn, "),
    *(
        ({section: {field: value}}, f"{section}.{field} = {value}: .*finite")
        for section, field in (("optimizer", "learning_rate"), ("objective", "weight_power"))
        for value in (float("inf"),)
    ),
    ({"objective": {"time_mean": (0, float("nan"), 0)}}, r"objective.time_mean.1 = nan: .*finite"),
]


@pytest.mark.parametrize(("values", "message"), FAULTS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_fault_is_one_line_with_field_value_and_what_is_allowed(values, message):
    with pytest.raises(ConfigError) as caught:
        parse(values)
    assert re.match(message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"evaluation": {"diagnostics": ["inference_guidance"]}, "dataset": {"conditional": False}},
            "evaluation.diagnostics = inference_guidance: must be left out with dataset.conditional = False",
        ),
        (
            {
                "evaluation": {"diagnostics": ["inference_guidance"]},
                "objective": {"label_drop": 0, "guidance_strength": 1},
            },
            "evaluation.diagnostics = inference_guidance: must be left out with objective.label_drop = 0",
        ),
        (
            {"training": {"ema_every": 16, "total_steps": 10}},
            "training.ema_every = 16: must be at most 10, ",
        ),
        (
            {"training": {"ema_every": 16, "report_every": 15}},
            "training.ema_every = 16: must be at most 15, ",
        ),
    ],
)
def test_what_earlier_versions_trained_is_read_but_not_trained(values, message):
    config = parse(values)
    with pytest.raises(ConfigError, match=f"^{message}"):
        check_training(config)
    with pytest.raises(ConfigError, match=f"^{message}"):
        check_inputs(config)
    check_training(parse({}))


def test_several_faults_are_a_line_each():
    with pytest.raises(ConfigError) as caught:
        parse({"objective": {"velocity_mix": 2}, "training": {"batch_size": 1}})
    assert [line.split(" = ")[0] for line in str(caught.value).splitlines()] == [
        "objective.velocity_mix",
        "training.batch_size",
    ]


def test_saved_configurations_may_have_the_former_name_of_the_feature_weights():
    former = parse({"evaluation": {"inception_weights": "inception.pth", "num_samples": 100}})
    assert former == parse({"evaluation": {"feature_weights": "inception.pth", "num_samples": 100}})


def test_the_edges_of_what_is_allowed():
    for section, values in (
        ("objective", {"flow_matching_fraction": 0, "velocity_mix": 1, "guidance_strength": 1, "label_drop": 0}),
        ("objective", {"flow_matching_fraction": 1, "velocity_mix": 0, "r_init": 1, "r_end": 1}),
        ("objective", MEANFLOW | {"label_drop": 0, "guidance_omega": 1, "guidance_kappa": 0}),
        ("evaluation", {"nfe": (1, 4), "sampler": "heun"}),
    ):
        parsed = getattr(parse({section: values}), section)
        assert {name: getattr(parsed, name) for name in values} == values


def test_the_batch_must_divide_among_the_workers():
    values = {"training": {"batch_size": 10}, "resources": {"num_workers": 3}}
    with pytest.raises(ValueError, match=r"training.batch_size = 10: must be divisible by resources.num_workers = 3"):
        LaunchConfig.model_validate(values)
    assert LaunchConfig.model_validate(values | {"resources": {"num_workers": 5}}).run.training.batch_size == 10


def test_a_launch_s_run_is_its_part_that_determines_the_numbers():
    run = tiny_config("meanflow", seed=3)
    for model in (TrainConfig, SweepConfig):
        launch = model.model_validate(to_dict(run) | {"storage": "elsewhere", "resources": {"num_workers": 2}})
        assert launch.run == run
        assert type(launch.run) is type(run)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_yaml_round_trip(name, tmp_path):
    config = tiny_config(name, evaluation={"nfe": (1, 2)}, dataset={"root": "some folder/ü"})
    path = tmp_path / "run.yaml"
    path.write_text(to_yaml(config))
    assert parse(read_yaml(path)) == config


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read as YAML"),
        (b"a: [1\n", "cannot be read as YAML"),
        (b"a: 1\n---\nb: 2\n", "cannot be read as YAML"),
        (b"\xff\xfe\x00", "cannot be read as YAML"),
        (b"- 1\n- 2\n", "must hold a mapping of configuration keys, not a list"),
        (b"!!python/object/apply:os.system ['true']\n", "cannot be read as YAML"),
    ],
)
def test_unusable_yaml_is_refused_by_name(content, message, tmp_path):
    path = tmp_path / "run.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


CHANGES = {
    "seed": 1,
    "dataset.name": "fashion_mnist",
    "dataset.root": "elsewhere",
    "dataset.conditional": False,
    "dataset.image_size": 8,
    "dataset.download": True,
    "network.name": "DiT-XS/2",
    "objective.interpolant": "trigonometric",
    "objective.parameterization": "trigonometric",
    "objective.gap_schedule": "linear",
    "objective.time_mean": (0.1, 0.2, 0.3),
    "objective.time_std": (1.1, 1.2, 1.3),
    "objective.r_end": 0.0015,
    "optimizer.name": "radam",
    "optimizer.betas": (0.8, 0.9),
    "optimizer.weight_decay": 0.01,
    "evaluation.nfe": (4, 8),
    "evaluation.sampler": "compose",
    "evaluation.times": (0.3,),
    "evaluation.guidance_interval": (0.1, 0.9),
    "evaluation.feature_network": "inception",
    "evaluation.feature_weights": "weights.pth",
    "evaluation.reference": "reference.npz",
    "evaluation.reference_sha256": "0123456789",
    "evaluation.protocol": "adm",
    "evaluation.labels": "data",
    "evaluation.diagnostics": ("ode_violation",),
    "dataset.augmentation": 0.12,
    "dataset.augmentations": "edm",
    "dataset.vae": "vae",
    "network.dropout": 0.3,
    "network.gradient_checkpointing": True,
    "training.ema_dtype": "float64",
    "training.snapshot_every": 100,
    "training.snapshot_lengths": (0.1,),
    "training.snapshot_dtype": "bfloat16",
    "training.precision": "bf16",
    "training.quotient_precision": "tf32",
}
NEEDS = {path: {"network.name": "U-Net-XS"} for path in ("dataset.augmentation", "network.dropout")}
NEEDS["evaluation.protocol"] = {"evaluation.reference": "reference.npz", "evaluation.reference_sha256": "01234567"}
"""What else must change for the change to be valid."""

"""A valid change of every field that is not a positive number."""


def test_the_hash_changes_with_every_field():
    base = to_dict(parse({}))
    hashes = {config_hash(parse(base))}
    for path in RUN_PATHS - {"objective.name"}:
        value = flatten(base)[path]
        if path in CHANGES:
            value = CHANGES[path]
        elif isinstance(value, bool):
            value = not value
        elif isinstance(value, int):
            value += 1
        else:
            value *= 1.01
        hashes.add(config_hash(parse(override(base, NEEDS.get(path, {}) | {path: value}))))
    hashes |= {config_hash(parse({"objective": {"name": name}})) for name in OBJECTIVES}
    # The base, a change of each path, and the other objectives for their name.
    assert len(hashes) == len(RUN_PATHS) + len(OBJECTIVES) - 1
    assert all(re.fullmatch("[0-9a-f]{12}", value) for value in hashes)
    assert config_hash(parse({})) == config_hash(parse(base))


def test_flatten_and_override():
    values = {"a": {"b": 1, "c": {"d": 2}}, "e": [3]}
    assert flatten(values) == {"a.b": 1, "a.c.d": 2, "e": [3]}
    changed = override(values, {"a.c.d": 5, "a.x.y": 6, "e": 7})
    assert changed == {"a": {"b": 1, "c": {"d": 5}, "x": {"y": 6}}, "e": 7}
    assert values == {"a": {"b": 1, "c": {"d": 2}}, "e": [3]}
    config = to_dict(tiny_config())
    assert override({}, flatten(config)) == config


# Search spaces.


def space(*search: str, **values):
    return search_space.build(SweepConfig.model_validate({"search": search or None, **values}))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_default_search_of_every_objective_is_valid(name):
    found = space(objective={"name": name})
    assert {dimension.path for dimension in found.dimensions} == {
        assignment.partition("=")[0] for assignment in OBJECTIVES[name].search
    }
    base = parse({"objective": {"name": name}})
    trial_config(base, found.base_point)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(50):
        trial = study.ask()
        found(trial)
        trial_config(base, trial.params)


def test_assignments_are_read():
    assert Dimension.read("a.b=1:4") == Dimension("a.b", 1, 4)
    assert Dimension.read("a.b=1e-3:0.1:log") == Dimension("a.b", 0.001, 0.1, log=True)
    assert Dimension.read("a=x,2,0.5,true") == Dimension("a", choices=("x", 2, 0.5, True))


SEARCH_FAULTS = [
    (("objective.r_end",), "must be PATH=LOW:HIGH, PATH=LOW:HIGH:log or PATH=A,B,C"),
    (("objective.r_end=",), "must be PATH="),
    (("=0.1:0.2",), "must be PATH="),
    (("objective.r_end=0.1:0.01",), "must have finite numbers LOW < HIGH"),
    (("objective.r_end=a:b",), r"objective\.r_end = a:b: must be a number"),
    (("objective.r_end=0:0.1:log",), "both above 0 with :log"),
    (("objective.r_end=0.1:0.2:lin",), "must have finite numbers LOW < HIGH"),
    (("objective.r_end=nan:0.2",), "must have finite numbers LOW < HIGH"),
    (("optimizer.learning_rate=0.1:inf",), "finite"),
    (("objective.gap_schedule=[a",), r"objective\.gap_schedule = \[a: must be"),
    (("objective.time_mean=[0,0,0],[1,1,1]",), "must be PATH="),
    (("objective.r_ned=0.1:0.2",), "objective.r_ned is not a path of the configuration; did you mean objective.r_end?"),
    (("resources.num_workers=1:2",), "resources.num_workers is not a path of the configuration"),
    (("objective.gap_schedule=constant,sqrt",), "objective.gap_schedule = sqrt: "),
    (("objective.flow_matching_fraction=0.5:1.5",), "objective.flow_matching_fraction = 1.5: .*or equal to 1"),
    (("training.batch_size=16.5:20",), "training.batch_size = 16.5: .*integer"),
    (("objective.guidance_kappa=0:0.5",), "objective.guidance_kappa is not a path"),  # MeanFlow's, not SoFlow's
    (("training.batch_size=16:32", "training.batch_size=64,128"), "training.batch_size.* twice"),
    (("objective.r_end=0.05:0.5", "objective.r_init=0.01:0.5"), "r_end = 0.05 must not exceed r_init = 0.01"),
    (("objective.r_end=0.01:0.5",), "r_end = 0.5 must not exceed r_init = 0.1"),
    (("objective.r_end=0.001,0.05", "objective.r_init=0.01:1"), "r_end = 0.05 must not exceed r_init = 0.01"),
]


@pytest.mark.parametrize(
    ("search", "message"), SEARCH_FAULTS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_faulty_search_is_refused_in_one_line(search, message):
    with pytest.raises(ConfigError) as caught:
        space(*search, objective={"r_init": 0.1})
    assert re.search(message, str(caught.value)), str(caught.value)
    assert str(caught.value).startswith(("search = ", "search of "))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "search",
    [
        ("objective.r_end=0.001:0.5:log", "objective.r_init=0.01:1:log"),
        ("objective.r_init=0.01:1", "objective.r_end=0.001:0.5"),
        ("objective.r_init=0.01,0.1,1", "objective.r_end=0.005:0.5:log"),
        ("objective.r_init=0.05:1", "objective.r_end=0.001,0.01,0.05"),
    ],
)
def test_r_end_never_exceeds_r_init(search):
    found = space(*search)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    limited, base = 0, parse({})
    for _ in range(1000):
        trial = study.ask()
        found(trial)
        r_end, r_init = trial.params["objective.r_end"], trial.params["objective.r_init"]
        assert r_end <= r_init
        limited += r_init < max(found.dimensions[1].extremes)
    trial_config(base, trial.params)
    trial_config(base, found.base_point)
    assert limited > 100 or found.dimensions[1].choices  # the ranges overlap, so the limit was at work


def test_the_first_trial_is_the_base_configuration_where_the_space_allows_it():
    """And always a valid one: clipping keeps r_end ≤ r_init."""
    random.seed(0)
    for _ in range(300):
        low, high = sorted(random.uniform(0.001, 1) for _ in range(2))
        r_end, r_init = sorted(random.uniform(0.001, 1) for _ in range(2))
        search = (f"objective.r_init={low}:{high}", f"objective.r_end={low * random.uniform(0.1, 1)}:{high}")
        values = {"objective": {"name": "soflow", "r_init": r_init, "r_end": r_end}}
        found = space(*search, **values)
        point = found.base_point
        assert trial_config(parse(values), point).objective.r_end <= point["objective.r_init"]
        assert low <= point["objective.r_init"] <= high
        if low <= r_init <= high:
            assert point["objective.r_init"] == r_init


def test_yaml_may_hold_a_mapping_of_searched_paths():
    mapping = {"objective.r_end": "0.001:0.05:log", "objective.gap_schedule": "linear,cosine"}
    config = SweepConfig.model_validate({"search": mapping})
    assert config.search == ("objective.r_end=0.001:0.05:log", "objective.gap_schedule=linear,cosine")
    search_space.build(config)


def test_integers_are_searched_as_integers():
    found = space("training.batch_size=16:64:log", "optimizer.warmup_steps=0:10")
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    found(trial)
    assert {type(value) for value in trial.params.values()} == {int}


def test_a_trial_s_configuration_is_the_base_with_its_point():
    base = tiny_config()
    changed = trial_config(base, {"objective.r_end": 0.01, "objective.r_init": 0.5})
    assert changed.objective.r_end == 0.01
    assert changed == parse(override(to_dict(base), {"objective.r_end": 0.01, "objective.r_init": 0.5}))


# Cases instead of a search.


def compared(*cases: str, **values) -> SweepConfig:
    return SweepConfig.model_validate({"cases": cases, "early_stopping": {"kind": "none"}} | values)


def test_cases_are_trained_with_every_seed():
    config = compared("soflow", "meanflow:objective.name=meanflow,objective.guidance_omega=2", case_seeds=3, seed=5)
    found = build(config)
    points = known_points(config, found)
    assert config.num_trials == len(points) == 6
    assert [(point["case"], point["seed"]) for point in points[:3]] == [("soflow", 5), ("meanflow", 5), ("soflow", 6)]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for point in points:
        study.enqueue_trial(point)
    for point in points:
        trial = study.ask()
        found(trial)
        assert found.point(trial.params) == point
    run = trial_config(config.run, points[3], config.cases)
    assert (run.seed, run.objective.name, run.objective.guidance_omega) == (6, "meanflow", 2)
    values = to_dict(config.run) | {"seed": 6, "objective": {"name": "meanflow", "guidance_omega": 2}}
    assert run == parse(values)  # nothing of the other objective's
    assert trial_config(config.run, points[2], config.cases) == parse(to_dict(config.run) | {"seed": 6})


@pytest.mark.parametrize(
    ("cases", "values", "message"),
    [
        (("a", "a:seed=1"), {}, "must have different names"),
        (("a:objective.r_end",), {}, "must read NAME or NAME:PATH=VALUE"),
        (("a",), {"early_stopping": {"kind": "asha"}}, "early_stopping.kind = asha: must be none with cases"),
        (("a",), {"search": ("objective.r_end=0.001:0.1",)}, "must be left out with cases"),
    ],
)
def test_cases_that_cannot_be_are_refused(cases, values, message):
    with pytest.raises(ValidationError, match=message):
        compared(*cases, **values)


def test_a_case_of_no_configuration_is_refused():
    with pytest.raises(ConfigError, match=r"cases, odd: .*objective.r_endd"):
        build(compared("odd:objective.r_endd=1"))


def test_cases_may_come_as_a_mapping_and_hold_lists():
    config = compared(cases={"plain": {}, "close": {"optimizer.betas": [0.9, 0.95], "seed": 3}})
    assert [case.changes for case in config.cases] == [{}, {"optimizer.betas": [0.9, 0.95], "seed": 3}]
