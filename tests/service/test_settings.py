"""Settings are read from the environment and `.env`, and a mistake in them is named before anything starts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.settings import Settings, SettingsError, describe_settings, load_settings


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the machine that the tests run on."""
    for name in [name for name in os.environ if name.startswith("PERK_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_without_any_setting_the_defaults_hold() -> None:
    settings = load_settings()

    assert settings.checkpoint == "default"
    assert settings.device == "auto"
    assert settings.redis_url is None
    assert settings.api_keys == ()
    assert settings.max_document_bytes == 8 * 1024**2
    assert settings.max_document_tokens == 131_072
    assert settings.adapter_ttl is None


def test_the_environment_goes_before_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Path(".env").write_text(f"PERK_QUEUE_LIMIT=3\nPERK_DATA_DIR={tmp_path / 'there'}\nOTHER_NAME=1\n")
    monkeypatch.setenv("PERK_QUEUE_LIMIT", "5")

    settings = load_settings()

    assert settings.queue_limit == 5
    assert settings.data_dir == tmp_path / "there"


def test_sizes_take_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERK_MEMORY_BUDGET", "512MiB")
    monkeypatch.setenv("PERK_MAX_DOCUMENT_BYTES", "1000")

    settings = load_settings()

    assert settings.memory_budget == 512 * 1024**2
    assert settings.max_document_bytes == 1000


def test_keys_stand_between_commas_and_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERK_API_KEYS", "first-key, second-key")

    settings = load_settings()

    assert [key.key.get_secret_value() for key in settings.api_keys] == ["first-key", "second-key"]
    assert "first-key" not in repr(settings)


def test_a_name_set_to_nothing_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERK_API_KEYS", "")
    monkeypatch.setenv("PERK_ADAPTER_TTL", "")

    assert load_settings().api_keys == ()
    assert load_settings().adapter_ttl is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PERK_DEVICE", "tpu"),
        ("PERK_QUEUE_LIMIT", "0"),
        ("PERK_QUEUE_LIMIT", "many"),
        ("PERK_MAX_DOCUMENT_TOKENS", "-1"),
        ("PERK_MAX_DOCUMENT_BYTES", "big"),
        ("PERK_ADAPTER_TTL", "0"),
        ("PERK_MEMORY_BUDGET", "1KiB"),
        ("PERK_STOP_GRACE_SECONDS", "nan"),
    ],
)
def test_a_bad_value_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError) as caught:
        load_settings()

    assert name in str(caught.value)
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("value", ["redis+no://user:password@host", "first-key,,second-key", "first key"])
def test_a_bad_secret_is_named_but_not_shown(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    name = "PERK_REDIS_URL" if value.startswith("redis") else "PERK_API_KEYS"
    monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError) as caught:
        load_settings()

    assert name in str(caught.value)
    assert "password" not in str(caught.value)
    assert "first" not in str(caught.value)


def test_unknown_names_are_all_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERK_QUEUE_LIMITS", "3")
    monkeypatch.setenv("PERK_DATADIR", "x")
    Path(".env").write_text("PERK_CHEKPOINT=x\n")

    with pytest.raises(SettingsError) as caught:
        load_settings()

    for name in ("PERK_QUEUE_LIMITS", "PERK_DATADIR", "PERK_CHEKPOINT"):
        assert name in str(caught.value)


def test_names_of_other_packages_are_left_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PERK_CACHE_DIR", "PERK_DATA_ROOT", "PERK_KERNELS", "PERK_PRODUCTS", "PERK_API_KEY", "PERK_SERVER"):
        monkeypatch.setenv(name, "x")

    load_settings()


def test_names_of_other_packages_have_no_effect_in_the_file_and_are_refused_there() -> None:
    Path(".env").write_text("PERK_CACHE_DIR=x\n")

    with pytest.raises(SettingsError, match=r"PERK_CACHE_DIR is read from the environment only"):
        load_settings()


def test_every_setting_is_described() -> None:
    described = describe_settings()

    for field in Settings.model_fields:
        assert f"PERK_{field.upper()}: " in described
