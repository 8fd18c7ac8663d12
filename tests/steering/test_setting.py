"""Settings: what is refused, and the gains and logits that follow from one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from prefheads.errors import SteeringError
from prefheads.steering.combine import combine, entropy_strength
from prefheads.steering.setting import PLAIN, Setting

WEIGHTS = torch.tensor([[0.0, 0.5], [1.0, 0.25]])


@pytest.mark.parametrize(
    "change",
    [
        {"gamma": -1.0},
        {"gamma": float("nan")},
        {"gamma": "1"},
        {"gamma": True},
        {"suppression": 2.0},
        {"suppression": None},
    ],
)
def test_impossible_settings_are_refused(change):
    with pytest.raises(SteeringError, match=r"(gamma|suppression) must"):
        Setting("a", **change)


def test_a_setting_changed_by_hand_keeps_no_schedule_that_its_mode_has_not():
    entropy = Setting("few", "contrast", "head", 1.0, schedule="entropy", cap=2.0)
    assert entropy.changed(gamma=0.5, mode=None) == replace(entropy, gamma=0.5)
    assert entropy.changed(mode="amplify") == Setting("few", "amplify", "head", 1.0)
    assert entropy.changed() == entropy


def test_gains() -> None:
    assert torch.equal(Setting(gamma=0.5).gains(WEIGHTS), 1 + 0.5 * WEIGHTS)
    faint = Setting(mode="contrast", gamma=3.0, suppression=0.25)
    assert torch.equal(faint.gains(WEIGHTS), 1 - 0.25 * WEIGHTS)
    assert torch.equal(faint.change(WEIGHTS), -0.25 * WEIGHTS)


def test_a_contrast_is_equation_8_with_the_strength_of_the_schedule() -> None:
    one, other = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    constant = Setting(mode="contrast", gamma=0.7, plausibility=0.1)
    assert torch.equal(constant.contrasted(one, other), combine(one, other, 0.7, plausibility=0.1))
    users = torch.tensor([0.0, 1.0, 2.0])[:, None]
    entropy = Setting(mode="contrast", gamma=9.0, schedule="entropy", cap=1.5)
    strength = entropy_strength(one, users, 1.5)
    assert torch.equal(entropy.contrasted(one, other, users), combine(one, other, strength))


def test_tables_hold_neither_the_scope_nor_what_older_ones_have_not() -> None:
    setting = Setting("few", "contrast", "head", 1.0, scope="all")
    names = ("heads", "mode", "target", "gamma", "suppression", "schedule", "cap")
    assert tuple(setting.to_dict()) == names
    assert replace(Setting(**setting.to_dict()), scope="all") == setting
    kept = replace(setting, plausibility=0.1).to_dict()
    assert kept["plausibility"] == 0.1


def test_hashes_of_older_runs_stay() -> None:
    """Texts are marked with a hash of the repr."""
    assert repr(Setting("few", "contrast", "head", 1.0, scope="all")) == (
        "Setting(heads='few', mode='contrast', target='head', gamma=1.0, suppression=1.0, "
        "schedule='constant', cap=None)"
    )


def test_words() -> None:
    assert str(PLAIN) == str(Setting("few", gamma=0.0)) == "plain (no steering)"
    faint = Setting("few", "contrast", "profile", 2.5, 0.1, "entropy", 4.0)
    assert str(faint) == ("contrast profile, few, gamma 2.5, suppression 0.1 x entropy, at most 4")
