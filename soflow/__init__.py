"""One-step image generators: SoFlow, MeanFlow and flow matching, their training, sampling and evaluation.

Symbols follow the SoFlow paper (arXiv 2512.15657). Time runs from t = 0 (data) to t = 1 (noise):

==============  =========================  =====================================================
symbol          name in the code           meaning
==============  =========================  =====================================================
x_0, x_1        ``data``, ``noise``        data sample; standard normal sample
α_t, β_t        ``alpha(t)``, ``beta(t)``  interpolant, x_t = α_t x_0 + β_t x_1
x_t, v_t        ``x_t``, ``v_t``           noised sample and conditional velocity α'_t x_0 + β'_t x_1
F_θ(x, t, s)    ``network(x, t, s, y)``    the backbone
a, b            ``a(t, s)``, ``b(t, s)``   solution parameterization, a(t,t) = 1 and b(t,t) = 0
f_θ(x, t, s)    ``solution(x, t, s)``      a x + b F_θ: state at time s of the trajectory through (x, t)
v_θ(x, t)       ``velocity(x, t)``         ∂_s f_θ at s = t
λ               ``flow_matching_fraction`` fraction of the batch on the flow-matching loss
r(k, K)         ``gap_schedule``           shrinks the gap t − l over training step k of K
w, m            ``guidance_strength``,     training-time classifier-free guidance
                ``velocity_mix``
p, ε            ``weight_power``,          adaptive loss weight
                ``weight_eps``
==============  =========================  =====================================================
"""
