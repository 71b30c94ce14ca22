"""What counts as a secret, and that nothing else is taken for one."""

import pytest

from train.config.redact import REDACTED, is_secret_name, redact, redact_code, secret_values, secrets_in

HEX = "0123456789abcdef" * 2 + "01234567"
VALUE = "canary/value+1"


SECRET = """
    token hf_token hfToken HF_TOKEN use_auth_token AWS_SESSION_TOKEN password DB_PASSWORD dbpassword passwd secret
    client_secret api_key apikey apiKey wandb.api_key API_KEY_2 AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY private_key
    auth basic_auth authorization credential credentials SENTRY_DSN X-Amz-Signature --hf-token
"""
HARMLESS = """
    tokens_seen tokenizer max_tokens num_tokens token_ids pad_token eos_token TOKENIZERS_PARALLELISM monkey keyboard key
    author authority XAUTHORITY secretary auth_method SSH_AUTH_SOCK password_file lr
"""


@pytest.mark.parametrize("name", SECRET.split())
def test_secret_names(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", HARMLESS.split())
def test_names_that_are_not_secret(name: str) -> None:
    assert not is_secret_name(name)


def test_nested_values() -> None:
    config = {
        "data": {"args": {"token": "abc", "names": ["x", VALUE], "max_tokens": 5}},
        "credentials": {"user": "me"},
        "password": 12345678,
        "auth": True,
        "token": 7,
        "api_key": None,
        "steps": 3.5,
    }
    assert redact(config, {VALUE}) == {
        "data": {"args": {"token": REDACTED, "names": ["x", REDACTED], "max_tokens": 5}},
        "credentials": REDACTED,
        "password": REDACTED,
        "auth": True,
        "token": 7,
        "api_key": None,
        "steps": 3.5,
    }


def test_a_reference_stays_but_its_default_goes() -> None:
    config = {"token": "${oc.env:HF_TOKEN}", "api_key": "${oc.env:KEY,abc}"}
    assert redact(config, ()) == {"token": "${oc.env:HF_TOKEN}", "api_key": REDACTED}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--password=x --user y", "--password=[redacted] --user y"),
        ("--password x --n 3", "--password [redacted] --n 3"),
        ("wandb.api_key=a data.args.token=b seed=1", "wandb.api_key=[redacted] data.args.token=[redacted] seed=1"),
        ("data.args.auth={user: a, pass: b}", "data.args.auth=[redacted]"),
        ("https://me:pw@example.org/x", "https://example.org/x"),
        ("git+https://abc@example.org/x", "git+https://example.org/x"),
        ("git@example.org:me/x", "git@example.org:me/x"),
        ("https://example.org/?x=1&token=a&y=2", "https://example.org/?x=1&token=[redacted]"),
        ('{"api_key": "a b", "x": 1}', '{"api_key": "[redacted]", "x": 1}'),
        ("{'password': 'a b'}", "{'password': '[redacted]'}"),
        ("author: token=a", "author: token=[redacted]"),
        ("Authorization: Bearer abc123def456", "Authorization: [redacted] [redacted]"),
        (f"wandb login {HEX}", "wandb login [redacted]"),
        (f"key: {HEX}", "key: [redacted]"),
        (f"commit {HEX}", f"commit {HEX}"),
        (f"got {VALUE}!", "got [redacted]!"),
        ("q=canary%2Fvalue%2B1", "q=[redacted]"),
        ("unexpected token: }", "unexpected token: }"),
        ("max_tokens=5 tokens_seen=9 monkey=banana pad_token=<pad>",) * 2,
        ("hf_" + "a" * 30, REDACTED),
        ("ghp_" + "a" * 30, REDACTED),
        ("sk-" + "a" * 30, REDACTED),
    ],
)
def test_texts(text: str, expected: str) -> None:
    assert redact(text, {VALUE}) == expected
    assert redact(expected, {VALUE}) == expected


def test_neighbours_in_a_command_line() -> None:
    assert redact(["run", "--token", "abc", "--n", "3"], ()) == ["run", "--token", REDACTED, "--n", "3"]


def test_code_keeps_its_expressions() -> None:
    code = 'token = next(tokens)\napi_key: str = "abc"\n'
    assert redact_code(code, ()) == 'token = next(tokens)\napi_key: str = "[redacted]"\n'


def test_secrets_of_the_environment_and_of_a_config() -> None:
    environ = {"HF_TOKEN": VALUE, "API_KEY": "short", "LANG": "a-long-value", "PROXY": "http://me:canary-proxy@host"}
    assert secret_values(environ) == {VALUE, "canary-proxy"}
    assert secrets_in({"a": {"token": VALUE, "x": "a-long-value"}, "api_key": "${oc.env:KEY}"}) == {VALUE}


def test_the_longest_secret_goes_first() -> None:
    assert redact("canary-long-tail", {"canary-long", "canary-long-tail"}) == REDACTED


@pytest.mark.timeout(20)
def test_a_large_text_takes_linear_time() -> None:
    for text in ("a" * 10**6, "token=" * 10**5, "://" * 10**5, "[ {" * 10**5):
        redact(text, {VALUE})
