"""Every signal that can announce trouble has a rule; of every other one it is said why it has none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from stabwatch.alerts import RULES
from stabwatch.alerts.catalogue import features
from stabwatch.alerts.columns import LayerColumns
from stabwatch.alerts.conditions import CONDITIONS
from stabwatch.alerts.roles import PLACES, ROLES, RoleColumns
from stabwatch.alerts.root_causes import ROOT_CAUSES
from stabwatch.runlog import SeriesKey
from stabwatch.signals import CATALOGUE

RUNBOOKS = Path(__file__).parents[2] / "docs" / "runbooks"
NO_RULE = {
    "part of what a rule reads: the same number by layer, group, head, rank, or in another form": (
        "group_gradient_norm", "gradient_fp16_headroom", "attention_logit_head",
        "attention_logit_upper", "attention_logit_upper_head", "attention_z", "attention_entropy_min",
        "attention_entropy_head", "output_logit_z", "output_logit_max", "output_rms", "activation_peak_ratio",
        "activation_fp16_headroom", "branch_trunk_ratio", "activation_gradient_rms",
        "activation_gradient_abs_max", "loop_output_rms", "loop_step_ratio", "loop_growth", "step_to_radius_ratio",
        "step_to_radius_mean_ratio", "step_to_radius_median_ratio", "step_to_radius_p99_ratio",
        "taylor_radius", "router_overflow_ratio", "expert_load_ratio",
        "shift_coherence", "token_mean_to_centred_ratio", "gradient_fp16_saturated_ratio",
        "activation_fp16_saturated_ratio", "rank_nonfinite_max", "rank_nonfinite_worst", "rank_busy_min_seconds",
        "policy_old_kl_k1",
        "policy_ratio_min", "rollout_ratio_max", "advantage_deviation",
    ),
    "evidence: it tells why, and healthy runs show any value of it": (
        "singular_value_max", "singular_value_second_ratio", "singular_value_residual_ratio", "stable_rank",
        "update_singular_value_max", "update_stable_rank", "update_weight_cosine", "update_successive_cosine",
        "attention_sink_ratio", "attention_sink_heads_ratio", "attention_concentration_ratio",
        "attention_row_weight", "attention_row_weight_max", "attention_row_weight_min",
        "attention_effective_keys_ratio", "adapter_gain_ratio", "adapter_change_ratio", "adapter_singular_value_ratio",
        "adapter_rank", "adapter_scaling", "query_key_increment_rank", "query_key_increment_rank_min",
        "query_key_increment_ratio", "quantised_flip_ratio", "quantised_oscillation_ratio", "quantised_boundary_ratio",
        "sharpness_ratio", "sharpness", "sharpness_residual_ratio", "hessian_trace",
        "activation_lagged_cosine", "activation_lagged_cosine_rank",
        "input_spread_ratio",
        "scale_invariant_ratio", "radial_update_ratio", "effective_step_size", "gradient_weight_cosine",
        "descent_weight_cosine", "logit_scaling_cosine", "output_entropy", "geometry_stability",
        "geometry_stability_error", "activation_kurtosis", "activation_outlier_ratio", "activation_zero_ratio",
        "weight_zero_ratio", "update_rms", "router_entropy", "router_z", "expert_output_rms", "attention_contraction",
        "router_logit_rms", "router_margin", "router_gate_load_gap_ratio", "router_weight_similarity",
        "expert_combine_rms", "expert_coherence", "skip_main_ratio", "router_directions_ratio",
        "query_key_increment_entropy", "log_alignment_ratio",
    ),
    "it shows in healthy networks too (docs/validation.md); TokenCollapse is what it leads to": (
        "mean_mode_energy_ratio", "mean_mode_to_centred_ratio", "writer_amplification",
    ),
    "whether a model is rolled out on its own output is not known": (
        "jacobian_singular_value", "jacobian_singular_value_max", "jacobian_norm", "jacobian_residual_ratio",
    ),
    "what a number format would lose, whether it is used or not": (
        *(f"{kind}_{name}_lost_ratio" for kind in ("activation", "gradient", "weight")
          for name in ("fp8_e4m3", "fp8_e5m2", "mxfp4", "nvfp4")),
        *(f"{kind}_{name}_error_ratio" for kind in ("activation", "gradient", "weight")
          for name in ("fp8_e4m3", "fp8_e5m2", "int8", "mxfp4", "nvfp4", "hif4", "fp4_ue5m3", "mxfp4_rotated",
                       "nvfp4_rotated", "nvfp4_unscaled")),
        *(f"{kind}_{name}_snr_db" for kind in ("activation", "gradient", "weight")
          for name in ("fp8_e4m3", "fp8_e5m2", "int8", "mxfp4", "nvfp4", "hif4", "fp4_ue5m3")),
        "gradient_mxfp4_to_noise_ratio", "gradient_nvfp4_to_noise_ratio",
        "activation_fp16_lost_ratio", "activation_fp16_subnormal_ratio", "weight_fp16_lost_ratio",
        "weight_fp16_saturated_ratio",
        "activation_exponent_spread", "gradient_exponent_spread",
    ),
    "how fast, not how well": ("data_wait_seconds",),
    "the watcher itself: an alert of Prometheus (docs/runbooks/Health.md)": (
        "overhead_ratio", "taps_missing", "probe_errors_total", "records_dropped_total",
    ),
    "what guards did: an event of the run log": ("guard_interventions_total",),
}  # fmt: skip


def _read_by_rules() -> set[str]:
    keys = tuple(SeriesKey(s.name, "" if s.scope == "run" else "a") for s in CATALOGUE)
    used = {rule.family for rule in RULES}
    found = set()
    for family in features():
        family.bind(keys)
        columns = [value for value in vars(family).values() if isinstance(value, LayerColumns)]
        if family.name in used:
            found |= {signal for c in columns for signal in c.signals}
            roles = [role for value in vars(family).values() if isinstance(value, RoleColumns) for role in value.roles]
            found |= {signal for role in roles for signal in ROLES[PLACES[role]].signals}
    return found | {s.name for s in CATALOGUE if s.name.endswith("nonfinite_total")}


def test_every_signal_has_a_rule_or_a_reason():
    without = [name for names in NO_RULE.values() for name in names]
    assert len(without) == len(set(without))
    assert {s.name for s in CATALOGUE} - _read_by_rules() == set(without)


def test_every_family_is_read_by_a_rule():
    assert {family.name for family in features()} <= {rule.family for rule in RULES}


@pytest.mark.parametrize("page", sorted(p.name for p in RUNBOOKS.glob("*.md") if p.stem not in ("README", "Health")))
def test_a_runbook_confirms_with_two_commands_over_signals_that_exist(page):
    text = (RUNBOOKS / page).read_text(encoding="utf-8")
    confirm = text.split("## Confirm")[1].split("\n## ")[0]
    commands = [line.strip() for line in confirm.splitlines() if line.startswith("    ")]
    assert len(commands) >= 2 and commands[0].startswith("stabwatch "), commands
    known = {s.metric for s in CATALOGUE} | {g.metric for family in features() for g in family.gauges}
    others = {"stabwatch_alerts_firing", "stabwatch_last_step_timestamp_seconds", "stabwatch_step"}
    for name in re.findall(r"\bstabwatch_\w+", text):
        assert re.sub("_window_(max|min)$", "", name) in known | others, name


def test_every_runbook_belongs_to_a_rule_or_a_cause():
    pages = {p.stem for p in RUNBOOKS.glob("*.md")} - {"README", "Health"}
    in_hindsight = {c.name for c in CONDITIONS.values() if c.detector and c.remedy}
    assert pages == {rule.name for rule in RULES} | {cause.name for cause in ROOT_CAUSES} | in_hindsight
