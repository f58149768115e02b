"""Places in a configuration: what is put there or taken away, also within lists and tuples."""

import pytest

from lightning_hp.project.key_paths import set_at, value_at, without

CONFIG = {"optimizer": {"betas": (0.8, 0.99), "groups": [{"lr": 1.0}, {"lr": 2.0, "nested": ((1, 2), 3)}]}}
PLACES = [
    ("optimizer", "betas", 0),
    ("optimizer", "betas", 1),
    ("optimizer", "groups", 1, "lr"),
    ("optimizer", "groups", 1, "nested", 0, 1),
]


def fresh():
    return {"optimizer": {**CONFIG["optimizer"], "groups": [dict(group) for group in CONFIG["optimizer"]["groups"]]}}


@pytest.mark.parametrize("place", PLACES)
def test_a_value_is_put_where_it_is_found_and_nothing_else_changes(place):
    config = fresh()
    set_at(config, place, 7)
    assert value_at(config, place) == 7
    assert all(value_at(config, other) == value_at(CONFIG, other) for other in PLACES if other != place)
    assert isinstance(config["optimizer"]["betas"], tuple)


def test_what_is_taken_out_of_a_list_or_tuple_leaves_the_numbers_of_the_others():
    left = without(CONFIG, PLACES)
    assert left["optimizer"]["betas"] == (None, None)
    assert left["optimizer"]["groups"] == [{"lr": 1.0}, {"nested": ((1, None), 3)}]
    assert fresh() == CONFIG, "the configuration itself is not touched"
