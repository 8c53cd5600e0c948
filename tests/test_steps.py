import pytest

from ticketlab.seeds import derive_seed
from ticketlab.steps import Duration, parse_duration


def test_epochs_become_steps():
    assert parse_duration("12ep").steps(917) == 11004
    assert parse_duration("500it").steps(917) == 500
    assert str(Duration(3, "ep")) == "3ep"


@pytest.mark.parametrize("text", ["12", 12, "1.5ep", "-3it", "12 ep", "012it", "", None, "5its"])
def test_other_spellings_of_time_are_refused(text):
    with pytest.raises(ValueError, match="'12ep'"):
        parse_duration(text)


def test_seeds_for_different_purposes_differ_and_do_not_change():
    assert derive_seed(0, "init") == 1519069808562059438  # half of the first 64 bits of SHA-256("0/init")
    assert len({derive_seed(s, p, e) for s in range(3) for p in ("order", "init") for e in range(3)}) == 18
