"""What the studies of this folder share: from a command line through a sweep to its report."""

from orchestration.command_line import fail, read_command_line
from orchestration.config import EXIT_CODES, SweepConfig
from orchestration.folders import new_folder
from orchestration.progress import stdout_for
from orchestration.recovery import own_config
from orchestration.spool import TrackingError
from orchestration.sweep import run_sweep
from soflow.config import to_dict
from soflow.data import DataError
from soflow.sections import ConfigError


def launch(model: type[SweepConfig], description: str) -> int:
    """Run or resume the sweep that the command line describes and leave a report of it; the program's exit code.

    Args:
        model: the study's own defaults.
        description: what --help says first.
    """
    # As a plain SweepConfig: it is pickled to processes that do not know the study's program and its class.
    config = SweepConfig.model_validate(to_dict(read_command_line(model, description)))
    try:
        if config.resume is None and config.name is None:
            config = config.model_copy(update={"name": new_folder(config).name})
        status = run_sweep(config)
    except (ConfigError, DataError, TrackingError) as error:
        fail(error)
    except KeyboardInterrupt:
        print("interrupted before the sweep began")
        return EXIT_CODES["KILLED"]
    if status != "KILLED":
        from dashboards.report import leave_report  # imports pandas

        folder = (config.storage / (config.resume or config.name)).absolute()
        with stdout_for(config.progress):
            leave_report(own_config(folder, {}).resolved_tracking_uri, folder)
    return EXIT_CODES[status]
