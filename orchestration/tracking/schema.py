"""Every name under which the tracker records something in MLflow: tags, parameters and metrics.

Writers and readers (orchestration, dashboards) take names from here. Metrics of a trial keep the names of its reports:
`fid`, `fid_2nfe`, `kid`, `class_consistency`, `fid_floor`, `loss/…`, `gradient/…`, `time/…`, `throughput/…`,
`memory/…`, `diagnostics/…`; the step is the optimizer step. `train/…` are learning curves between reports.
"""

from __future__ import annotations

from collections.abc import Iterable

from soflow.config_base import ConfigError

EXPERIMENT = "soflow"
"""The MLflow experiment of all sweeps and runs."""

# Tags of every run.
KIND = "soflow.kind"
SWEEP_KIND, TRIAL_KIND, RUN_KIND = "sweep", "trial", "run"
COST_KIND, STEP_COST_KIND, CLAIMS_KIND = "cost study", "step cost", "claims"
CHECKPOINT_SWEEP_KIND, POINT_KIND = "checkpoint sweep", "point"
"""Values of the tag KIND."""
STARTED_MS = "soflow.started_ms"
"""When a sweep was started last, or resumed: Unix time in ms. Its run keeps the time of the first start."""
PARENT = "mlflow.parentRunId"
NOTE = "mlflow.note.content"
OBJECTIVE, DATASET = "objective", "dataset"
CONFIG_HASH, FOLDER = "config_hash", "folder"
STEPS = "total_steps"
"""Tag of a run: its steps, also after an extension."""
COMPILE_CHOICE = "compile_choice"
"""Tag of runs and trials with training.compile = auto: the choice, and its reason. Tag `compiled`: the choice alone."""

# Tags of trials.
SWEEP, TRIAL_ID, NUMBER = "sweep", "trial_id", "optuna_number"
CASE = "case"
STATE, FAILURE, BEST = "state", "failure", "best"
"""How a trial ended (finished, stopped, failed), why it failed, and "true" for the best trial of a sweep."""
MAY_CHANGE = (
    *("num_trials", "search", "more_seeds", "confirm", "confirm_seeds", "resources", "max_concurrent", "trial_retries"),
    *("address", "wait_for_nodes_s", "tracking_uri", "progress"),
)
"""Fields and sections of a sweep that a resume takes from its command line; recorded as tags, because MLflow does not
change parameters."""

OF_A_START = ("storage", "resume")
"""Fields that may differ from one start of a sweep to the next; tags as well."""

FINGERPRINT, NFE = "fid_reference_fingerprint", "nfe"
FID_PROTOCOL = (
    "fid_feature_network",
    "fid_feature_weights_sha256",
    "fid_num_samples",
    "fid_labels",
    "fid_reference",
    FINGERPRINT,
    "fid_num_references",
    "fid_protocol",
    NFE,
)
"""Tags that must agree for two FIDs to be comparable; fid_protocol only if it is not torch-fidelity's."""

# Tags and files of how a run was made and how it failed.
GIT_COMMIT, CPU = "git_commit", "hardware.cpu"
CONDITIONS = (
    *("device", "threads", "workers", "micro_batch", "dtype", "quotient_dtype", "attention", "compiled"),
    *("memory_measure", "dataset_fingerprint", "dataset_size"),
)
"""Further conditions that must agree for two runs' numbers to be comparable."""
TRACEBACK = "failure.txt"
IMAGES = "images"
"""Artifact folder of sample grids."""

# Metrics that reports and figures use by name.
FID, FID_FLOOR = "fid", "fid_floor"
TRAIN_S, STEP_MS, PEAK_MIB = "time/train_s", "time/step_ms", "memory/peak_mib"
HIGHER_IS_BETTER = ("precision", "recall", "density", "coverage", "class_consistency", "inception_score")
PEAK_SHARE = "throughput/peak_share"
"""Achieved FLOP/s of the optimizer steps over the device's peak. A CPU's peak is measured while other trials run."""
CONSISTENCY_LOSS = "loss/consistency"
TRUE_DISTANCE, TRUE_VIOLATION = "diagnostics/true_distance/rms", "diagnostics/true_distance/violation"
FLOW_DISTANCE, ODE_VIOLATION = "diagnostics/flow_distance/rms", "diagnostics/ode_violation/mean"

# Prefixes of metrics.
FINAL = "final/"
"""Values of a trial's last report; also those of its logged model."""
RUNG = "rung/"
"""Values of the shorter trainings of a trial, with early_stopping.compare = equal_progress."""

TAGS = {
    *(OBJECTIVE, DATASET, CONFIG_HASH, FOLDER, STEPS, COMPILE_CHOICE, SWEEP, TRIAL_ID, NUMBER, CASE, STATE, FAILURE),
    *(BEST, GIT_COMMIT, *MAY_CHANGE, *OF_A_START, *FID_PROTOCOL, *CONDITIONS),
}
TAG_PREFIXES = ("mlflow.", "soflow.", "version.", "hardware.", "fid_", "resources.")
"""Tags that the tracker sets, and prefixes of further ones: users' own tags have other names."""


def check_own_tags(names: Iterable[str]) -> None:
    """Check that users' own tags have other names than those that the tracker sets.

    Raises:
        ConfigError: naming the tag.
    """
    for name in names:
        if name in TAGS or name.startswith(TAG_PREFIXES):
            raise ConfigError(f"tags = {name}: is a tag that the program sets; choose another name")
