"""Where the response begins, said for calls outside of generate()."""

from __future__ import annotations

import pytest
import torch

from prefheads.errors import SteeringError
from prefheads.steering.response import current, response_from


def test_it_holds_inside_the_block_alone_and_blocks_may_lie_in_each_other() -> None:
    mask = torch.ones(2, 3).bool()
    assert current.get() is None
    with response_from(3, profile_mask=mask):
        assert current.get().n_prompt == 3 and current.get().profile_mask is mask
        with response_from([2, 4]):
            assert current.get().n_prompt.tolist() == [2, 4]
        assert current.get().n_prompt == 3
    assert current.get() is None


def test_it_ends_with_an_error() -> None:
    with pytest.raises(KeyError), response_from(3):
        raise KeyError
    assert current.get() is None


@pytest.mark.parametrize("n_prompt", [0, [3, 0], -1, 1.5, "3", None, [1.0, 2.0]])
def test_what_is_no_number_of_tokens_is_refused(n_prompt) -> None:
    with pytest.raises(SteeringError), response_from(n_prompt):
        pytest.fail("the block was entered")
