"""Search λ, the gap schedule r(k, K), the guidance strength w and the velocity mix m for the best one-step images.

Optuna suggests configurations, Ray Tune schedules them, Ray Train trains them and MLflow logs them. The results are a
ranking, the best configuration (best.yaml) and a report (report.html).

$ python experiments/sweep_schedule.py
$ python experiments/sweep_schedule.py --objective meanflow --num-trials 20
$ python experiments/sweep_schedule.py --search objective.r_end=0.0005:0.05:log objective.velocity_mix=0:1
$ python experiments/sweep_schedule.py --resume NAME
"""

from experiments.launch import Experiment, launch

# The published training reports every 25,000 steps, so the first rung is at 50,000.
EXPERIMENT = Experiment(__doc__, None, small={}, paper={"early_stopping": {"kind": "asha", "grace_reports": 2}})

if __name__ == "__main__":
    raise SystemExit(launch(EXPERIMENT))
