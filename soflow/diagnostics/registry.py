"""Registry of the diagnostics: one module each, with `measure(subject: Subject) -> dict[str, float]`."""

DIAGNOSTICS = {
    "ode_violation": "soflow.diagnostics.ode_violation",
    "semigroup_error": "soflow.diagnostics.semigroup_error",
    "flow_distance": "soflow.diagnostics.flow_distance",
    "true_distance": "soflow.diagnostics.true_distance",
    "target_variance": "soflow.diagnostics.target_variance",
    "fid_by_nfe": "soflow.diagnostics.fid_by_nfe",
    "inference_guidance": "soflow.diagnostics.inference_guidance",
}
