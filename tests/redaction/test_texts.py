"""What is taken out of texts and of nested values, and what stays readable."""

import time
from typing import Any

import pytest

from train.redaction import REDACTED, clean, clean_known, clean_patch, learn
from train.redaction.clean import clean_text

HEX = "0123456789abcdef" * 2 + "01234567"
VALUE = "canary/value+1"

HARMLESS = [
    *(
        "max_tokens=5",
        "tokens_seen: 9",
        "monkey=banana",
        "pad_token: <pad>",
        "author: Jane Doe",
        "authority=local",
    ),
    *(
        "pass_through=true",
        "compass: north",
        "patience=5",
        "path: /a/b",
        "pattern: x*",
        "keys: [a, b]",
    ),
    *(
        f"commit {HEX}",
        f"sha256: {'ab12' * 16}",
        "run id 3k2j1h5g",
        "d9428888-122b-11e1-b85c-61cd3cbb3210",
    ),
    *(
        "step 100/2000 loss 2.1",
        "model.args.hidden=[64,64]",
        "tokenizer: gpt2",
        "sort_key: length",
        "primary_key=id",
    ),
    *(
        "key: labels",
        "class TokenEmbedding(nn.Module):",
        "eos_token=</s>",
        "data.columns={inputs: x, targets: y}",
    ),
    *(
        "https://huggingface.co/datasets/org/name",
        "git@github.com:me/x.git",
        "unexpected token: }",
        "[redacted]",
    ),
    *(
        "KeyError: 'labels'",
        "sorting by key ascending",
        "wandb: synced run-20261129_070000-abcd1234",
        "passes: 3",
    ),
    *(
        "tokens    1,024 per step = 64 x 16; at most 20,480 in all",
        "passed 3 of 5",
        "signature mismatch",
        "tok: bpe",
    ),
    "RuntimeError: mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)",
    *(
        "no module named 'authlib'",
        "keyword argument 'key' repeated",
        "secret santa dataset",
        "basic block 12345",
    ),
    *(
        "checkpoints/step-00000100/model.safetensors",
        "tokens/s: 12000",
        "conv1.weight has shape (3, 4)",
    ),
]
HARMLESS += [
    *(
        "Invalid token:\nstep 3",
        "password:\nother: 1",
        "tokens:\n1234",
        "the password:\nis not set",
    ),
    *("set HF_TOKEN\nhttps://example.org/a1b2c3d4", "bad signature\n0123456789abcdef0123"),
    *(
        "docker run -p 8080:80 x",
        "mysql -P 3306",
        "echo hi | sort",
        "Missing key(s) in state_dict:\n  layer1.0.weight",
    ),
]

HARMLESS_CODE = [
    *(
        "token = next(tokens)",
        "key = self.key_proj(x)",
        "password = getpass()",
        "token_ids = batch['tokens']",
    ),
    *(
        "def token(self, key: str) -> str:",
        "x = d['key']",
        "sorted(xs, key=len)",
        "attn(key=key, value=value)",
    ),
    *(
        "class Auth(Base):",
        "token: int",
        "if token in special:",
        "pad_token = '<pad>'",
        "assert key in state_dict",
    ),
    *(
        "columns = ['token', 'label']",
        "import secrets",
        "return token",
        "for key, value in items():",
        "auth = None",
    ),
    *(
        "token = os.environ['HF_TOKEN']",
        "token = os.environ.get('HF_TOKEN')",
        "key: str = 'inputs'",
        "password: str",
    ),
    *(
        "hf_token=None",
        "self.token = token",
        "sig = inspect.signature(f)",
        "raise ValueError('token is missing')",
    ),
    *(
        "token = config['token']",
        "api_key: str | None = None",
        "session = requests.Session()",
        "passed = True",
    ),
    "parser.add_argument('--token', help='the token of the hub')",
]


def test_nested_values() -> None:
    learn({"token": VALUE})
    config = {
        "data": {"args": {"token": "abc", "names": ["x", VALUE], "max_tokens": 5}},
        "credentials": {"user": "me"},
        "env": [{"name": "HF_TOKEN", "value": "abc"}],
        "acme_key": "labels",
        "zeta_key": "Zx81kq77Pm",
        "password": 12345678,
        "auth": True,
        "token": 7,
        "api_key": None,
        "steps": 3.5,
    }
    assert clean(config) == {
        "data": {"args": {"token": REDACTED, "names": ["x", REDACTED], "max_tokens": 5}},
        "credentials": REDACTED,
        "env": [{"name": "HF_TOKEN", "value": REDACTED}],
        "acme_key": "labels",
        "zeta_key": REDACTED,
        "password": REDACTED,
        "auth": True,
        "token": 7,
        "api_key": None,
        "steps": 3.5,
    }


def test_a_reference_stays_but_its_default_goes() -> None:
    config = {
        "token": "${oc.env:HF_TOKEN}",
        "api_key": "${oc.env:KEY,abc}",
        "x": "${oc.env:HF_TOKEN,abc}",
    }
    expected = {
        "token": "${oc.env:HF_TOKEN}",
        "api_key": REDACTED,
        "x": "${oc.env:HF_TOKEN,[redacted]}",
    }
    assert clean(config) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--password=x --user y", "--password=[redacted] --user y"),
        ("--password x --n 3", "--password [redacted] --n 3"),
        (
            "wandb.api_key=a data.args.token=b seed=1",
            "wandb.api_key=[redacted] data.args.token=[redacted] seed=1",
        ),
        ("data.args.auth={user: a, pass: b}", "data.args.auth=[redacted]"),
        ("https://me:pw@example.org/x", "https://example.org/x"),
        ("git+https://abc@example.org/x", "git+https://example.org/x"),
        ("https://example.org/?x=1&token=a&y=2", "https://example.org/?x=1&token=[redacted]&y=2"),
        ('{"api_key": "a b", "x": 1}', '{"api_key": "[redacted]", "x": 1}'),
        ("{'password': 'a b'}", "{'password': '[redacted]'}"),
        ("author: token=a", "author: token=[redacted]"),
        ("Authorization: Bearer abc123def456", "Authorization: [redacted]"),
        (f"wandb login {HEX}", "wandb login [redacted]"),
        (f"key: {HEX}", "key: [redacted]"),
        (f"got {VALUE}!", "got [redacted]!"),
        ("q=canary%2Fvalue%2B1", "q=[redacted]"),
        ("hf_" + "a" * 30, REDACTED),
        ("ghp_" + "a" * 30, REDACTED),
        ("sk-" + "a" * 30, REDACTED),
    ],
)
def test_texts(text: str, expected: str) -> None:
    learn({"token": VALUE})
    assert clean(text) == expected
    assert clean(expected) == expected


def test_false_alarms() -> None:
    assert [text for text in HARMLESS if clean(text) != text] == []


def test_false_alarms_in_code() -> None:
    assert [text for text in HARMLESS_CODE if clean_text(text, code=True) != text] == []


def test_a_row_of_a_step_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A password that is an ordinary word, or a short number, is not looked for in other texts."""
    for name, value in {
        "A_PASS": "loss",
        "B_PASS": "1234",
        "C_PASS": "abc",
        "D_TOKEN": "true",
    }.items():
        monkeypatch.setenv(name, value)
    row = "step 1234/2000  loss 2.3012 (2.3055)  lr 1.00e-03  batch 64  12,345/s abc true"
    assert clean(row) == row


def test_a_short_secret_goes_as_a_whole_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_PASS", "x7Qz")
    assert clean("x7Qz, (x7Qz) ax7Qz x7Qz1") == "[redacted], ([redacted]) ax7Qz x7Qz1"


def test_the_longest_secret_goes_first() -> None:
    learn({"token": ["canary-long", "canary-long-tail"]})
    assert clean("canary-long-tail") == REDACTED


def test_the_environment_may_change(monkeypatch: pytest.MonkeyPatch) -> None:
    assert clean("Zx81kq77Pm") == "Zx81kq77Pm"
    monkeypatch.setenv("LATE_TOKEN", "Zx81kq77Pm")
    assert clean("Zx81kq77Pm") == REDACTED


def test_state_keeps_its_form() -> None:
    learn({"token": VALUE})
    state: Any = {"token": "pad", "x": (1, VALUE), 2: [True, None]}
    assert clean_known(state) == {"token": "pad", "x": (1, REDACTED), 2: [True, None]}


def test_a_binary_file_with_a_secret_is_not_kept() -> None:
    patch = "diff --git a/x.bin b/x.bin\nindex 1..2\nGIT binary patch\nliteral 3\nKcmZabc\n\n"
    assert clean_patch(patch, lambda path: b"\x00\x01") == patch
    assert "Kcm" not in clean_patch(patch, lambda path: "token=abc123def".encode("utf-16"))


@pytest.mark.timeout(60)
def test_a_large_text_takes_linear_time() -> None:
    for text in (
        "a" * 10**5,
        "token=" * 10**4,
        "://" * 10**4,
        "[ {" * 10**4,
        "token" * 10**4,
        "token='" * 10**4,
    ):
        begun = time.perf_counter()
        clean(text)
        assert time.perf_counter() - begun < 2, text[:8]
