"""Does the pipeline learn at all? One-step images without guidance, against a bound that was stated before.

SoFlow with λ = 0.75, p = 1 and the exponential schedule, without guidance: the setting in which the paper's DiT-B/4
reaches FID 58.56 on ImageNet 256 (arXiv 2512.15657). The bound is in the hypothesis: at the paper's scale 65 after
100,000 steps, a quarter of the published training; on small images 20 times the floor, the FID between two halves of
the real data. It was first asked after 1,000 steps, where digits missed it (27.7 times the floor, p = 0.011); the bound
stayed, the training was doubled. It is called met or missed where a t-test over the seeds has p < 0.05; five seeds show
an effect of 1.7 standard deviations with a probability of 80 %. Nothing is stopped early.

$ python experiments/sanity_check.py
$ python experiments/sanity_check.py --dataset fashion_mnist --name sanity_check-fashion
$ python experiments/sanity_check.py --scale paper --dry-run
"""

from launch import Study, comparison, launch

UNGUIDED = "unguided:objective.guidance_strength=1.0,objective.flow_matching_fraction=0.75"
STUDY = Study(
    __doc__,
    "sanity_check",
    small=comparison(
        (UNGUIDED,),
        5,
        hypotheses=("fid(unguided) < 20 * fid_floor(unguided)",),
        training={"total_steps": 2000},
    ),
    paper=comparison(
        (UNGUIDED,),
        3,
        hypotheses=("fid(unguided) < 65",),
        training={"total_steps": 100_000},
    ),
    preset="soflow-imagenet256-b4-no-guidance",
)

if __name__ == "__main__":
    raise SystemExit(launch(STUDY))
