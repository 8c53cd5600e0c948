from ticketlab.method_names import common_settings, method_names


def test_a_method_s_name_says_what_is_not_common():
    flipout = {"method": "sign_flip", "pruning.criterion": "flipout", "train.gradient_noise": 1.0, "train.lr": 0.1}
    settings = [
        {"method": "gradual", "pruning.criterion": "magnitude", "train.gradient_noise": 0.0, "train.lr": 0.1},
        {**flipout, "pruning.options.p": 2.0},
        {**flipout, "pruning.options.p": 1.0},
    ]
    # a field that has no meaning for a method is not counted and not said
    assert method_names(settings) == [
        "gradual magnitude gradient_noise=0.0",
        "sign_flip flipout",
        "sign_flip flipout p=1.0",
    ]
    assert common_settings(settings)["train.gradient_noise"] == 1.0
    assert "train.lr" not in common_settings(settings)


def test_a_variant_says_what_was_changed_in_it_its_criterion_too():
    base = {"method": "oneshot", "pruning.criterion": "magnitude", "variant": "units"}
    changed = {**base, "pruning.criterion": "obs"}
    assert method_names([base, base, changed]) == ["units", "units", "units criterion=obs"]
