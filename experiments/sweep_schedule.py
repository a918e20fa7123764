"""Which λ, gap schedule r(k, K), guidance strength w and velocity mix m give the best one-step images?

Searches the configuration with Ray Tune and Optuna, trains every trial with Ray Train, records everything in MLflow,
and ends with a ranking, the best configuration as a file and a report to look at.

$ python experiments/sweep_schedule.py
$ python experiments/sweep_schedule.py --objective meanflow --num-trials 20
$ python experiments/sweep_schedule.py --search objective.r_end=0.0005:0.05:log objective.velocity_mix=0:1
$ python experiments/sweep_schedule.py --resume NAME
"""

from experiments.launch import Study, launch

# At the paper's scale reports come every 25,000 steps: a rung after two of them.
STUDY = Study(__doc__, None, small={}, paper={"early_stopping": {"kind": "asha", "grace_reports": 2}})

if __name__ == "__main__":
    raise SystemExit(launch(STUDY))
