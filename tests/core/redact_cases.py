"""One secret of each category, and texts that are made of pieces of secrets."""

from __future__ import annotations

from hypothesis import strategies as st

#: category -> a text that is one secret as a whole.
SECRETS: dict[str, str] = {
    "aws_access_key": "AKIAIOSFODNN7EXAMPLE",
    "aws_secret_key": "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "gcp_api_key": "AIzaSyA1234567890abcdefghijklmnopqrstuv",
    "anthropic_key": "sk-ant-api03-abcdefghijklmnopqrstuvwx",
    "openai_key": "sk-proj-abcdefghijklmnopqrstuvwx",
    "openai_legacy_key": "sk-abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMN1234",
    "github_pat": "ghp_aBcDeFgHiJkLmNoPqRsTuVwXyZaBcDeFgHiJ",
    "github_oauth": "gho_aBcDeFgHiJkLmNoPqRsTuVwXyZaBcDeFgHiJ",
    "github_app": "ghs_aBcDeFgHiJkLmNoPqRsTuVwXyZaBcDeFgHiJ",
    "github_refresh": "ghr_aBcDeFgHiJkLmNoPqRsTuVwXyZaBcDeFgHiJ",
    "github_fine_pat": "github_pat_11ABCDEFGHIJKLMNOPQRST_uvwxyz",
    "gitlab_token": "glpat-abcdefghijklmnopqrst",
    "jwt_token": "eyJhbGciOiJIUzI1NiIsInR5cCI6.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9",
    "bearer_token": "Bearer abcdefghijklmnopqrstuvwxyz123456",
    "password": "PASSWORD: supersecret123",
    "api_key_generic": "api_key=12345678901234567890",
    "secret_key": "secret_key = my_super_secret_value",
    "access_token": "access_token = my_access_token_value_123",
    "auth_token": "auth-token : my_auth_token_value_456",
    "connection_string": "postgres://user:pass@localhost:5432/mydb",
    "private_key": "-----BEGIN RSA PRIVATE KEY-----",
    "env_secret": "DATABASE_URL=postgres://user:pass@host/db",
}
#: The same with other spellings: (category, text).
SPELLINGS: tuple[tuple[str, str], ...] = (
    ("password", "pwd=x"), ("password", "Passwd :\n x"), ("password", 'password="two words"'),
    ("api_key_generic", "APIKEY=1"), ("api_key_generic", "api-key: 1"), ("secret_key", "secretkey=1"),
    ("access_token", "accessToken=1"), ("auth_token", "AUTH_TOKEN=1"),
    ("aws_secret_key", "AWS-SECRET-ACCESS-KEY:x"), ("connection_string", "mongodb+srv://u:p@h"),
    ("connection_string", "postgresql+psycopg2://u:p@h/db"), ("connection_string", "REDISS://:p@h"),
    ("connection_string", "amqps://u:p@h"), ("connection_string", "mssql://sa:p@h"),
    ("connection_string", "mysql://u:p@h"), ("private_key", "-----BEGIN PRIVATE KEY-----"),
    ("private_key", "-----BEGIN OPENSSH PRIVATE KEY-----"), ("env_secret", "REDIS_URL = redis://h"),
    ("env_secret", "secret_key_base=x"), ("env_secret", "ENCRYPTION_KEY=x"), ("env_secret", "PRIVATE_KEY=x"),
    ("bearer_token", "bearer  abcdefghijklmnopqrst"),
    (
        "private_key",
        "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIIGLlamZU9dKtx0r\nabc=\n-----END EC PRIVATE KEY-----",
    ),
)
_PARTS = (
    *SECRETS.values(),
    "password", "pass", "word", "pwd", "=", ":", " ", "  ", "\n", '"', "'", "\\", '\\"', "\\n", "a", "x",
    "_", "-", "-----", "-----BEGIN ", "PRIVATE KEY-----", "-----END RSA PRIVATE KEY-----",
    "MIIEpAIBAAKCAQEA7", "eyJ", ".", "eyJhbGciOiJI", "AKI", "AIza", "sk-", "sk-ant-api", "ghp_",
    "github_pat_", "glpat-", "bearer", "://", "redis", "mongodb+srv://", "api", "key", "secret", "_url=",
    "aws", "access", "auth", "token", "é", "密码", "İ", "[REDACTED]", "0123456789ABCDEFGHIJ",
    "abcdefghijklmnopqrst", "hunter2", "!", ",", '{"password": "', '"}', 'private_key":"', "\u2028",
    "\x00", " the ", " a ", "\ud800",
)
#: Texts in which secrets begin, overlap, are broken off and stand in quotes.
texts = st.lists(st.sampled_from(_PARTS) | st.text(max_size=4), max_size=10).map("".join)

__all__ = ["SECRETS", "SPELLINGS", "texts"]
