"""DATABASE_URL as libpq reads it: what it means, what is refused, and that no password is shown."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import make_conninfo

from vidgen_worker.database.database_url import DatabaseUrl, DatabaseUrlError, place_of, secrets_of

SECRET = "hunter22"


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("postgresql://u:hunter22@h:6543/d", "u@h:6543/d"),
        ("postgres://u:hunter22@h/d?sslmode=require", "u@h:5432/d"),
        ("postgresql://u:hunter22@a:1,b:2/d", "u@a:1,b:2/d"),
        ("postgresql://u:hunter22@a,b/d", "u@a:5432,b:5432/d"),
        ("postgresql://u:hunter22@[::1]:5433/d", "u@[::1]:5433/d"),
        ("postgresql:///d?host=/var/run/postgresql&user=u", "u@/var/run/postgresql/d"),
        ("postgresql://%2Ftmp/d", "@/tmp/d"),
        ("host=h port=1 user=u dbname=d password=hunter22", "u@h:1/d"),
        ("host=a,b port=1 user=u dbname=d password='hunter22'", "u@a:1,b:1/d"),
        ("postgresql://u:hunter22%40x@h/d", "u@h:5432/d"),
        # libpq takes these as they are, whatever other parsers say.
        ("postgresql://u:hun#ter22@h/d", "u@h:5432/d"),
        ("postgresql://u:hun?ter22@h/d", "u@h:5432/d"),
        ("postgresql://u@h/d?application_name=me@home", "u@h:5432/d"),
    ],
)
def test_every_url_that_libpq_reads_is_read(url: str, place: str) -> None:
    read = DatabaseUrl.read(url)
    assert read.place() == place
    assert SECRET not in read.masked() + repr(read)
    assert read.pooled_by_transaction == ("6543" in url)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://u:[hunter22]@db.ref.supabase.co:5432/postgres", "square brackets"),
        ("postgresql://u:[YOUR-PASSWORD]@h:5432/postgres", "[YOUR-PASSWORD]"),
        ("postgresql://u:hunter22@x@h:5432/d", "@ is %40"),
        ("postgresql://u:hunter22/x@h:5432/d", "/ is %2F"),
        ("postgresql://u:12/hunter22@h:5432/d", "/ is %2F"),
        ("postgresql://u:/hunter22@h:5432/d", "/ is %2F"),
        ("postgresql://u:hun%ter22@h/d", "% is %25"),
        ("postgresql://u:hunter22 x@h/d", "a space is %20"),
        ("postgresql://u:hunter22@h/d?pgbouncer=true", "remove pgbouncer=…"),
        ("postgresql://u:hunter22@h/d?connection_limit=1", "remove connection_limit=…"),
        ("postgresql://u:hunter22@h/d?schema=public", "remove schema=…"),
        ("postgresql://u:hunter22@h/d?hunter22", "name=value"),
        ("postgresql://u:hunter22@h:port/d", "from 1 to 65535"),
        ("postgresql://u:hunter22@h:0/d", "from 1 to 65535"),
        ("postgresql://u:hunter22@h:99999/d", "from 1 to 65535"),
        ("postgresql://u:hunter22@a,b:1,c:2,d/d?port=1,2", "hosts and"),
        ("postgresql://u:hunter22@<ref>.supabase.co/d", "placeholder"),
        ("postgresql://u:hunter22@db.[ref].supabase.co/d", "placeholder"),
        ("postgresql://u:hunter22@a..b/d", "no host name"),
        (f"postgresql://u:hunter22@{'a' * 64}/d", "no host name"),
        ("postgresql://[::1/hunter22", "can't read it"),
        ("mysql://u:hunter22@h/d", "write postgresql://"),
        ("postgresql+psycopg://u:hunter22@h/d", "write postgresql://"),
        ("hunter22", "write postgresql://"),
        ("host=h nonsense=hunter22", "remove nonsense=…"),
        ("postgresql://u:hunter22\udcff@h/d", "no UTF-8"),
    ],
)
def test_a_url_that_can_not_work_is_refused_without_the_password(url: str, said: str) -> None:
    with pytest.raises(DatabaseUrlError) as refused:
        DatabaseUrl.read(url)
    assert said in str(refused.value)
    assert SECRET not in str(refused.value)
    assert refused.value.__cause__ is None or SECRET not in str(refused.value.__cause__)
    assert place_of(url) == "the address of DATABASE_URL"
    # The password can't be located: all of the text is hidden.
    assert any(SECRET in secret or "%" in secret for secret in secrets_of(url)) or "[Y" in url


def test_every_password_of_a_url_is_a_secret() -> None:
    url = "postgresql://u:hun%23ter@h/d?sslpassword=other%20one"
    assert set(secrets_of(url)) == {"hun#ter", "other one"}
    assert secrets_of("postgresql://postgres:postgres@h/d") == ()


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_any_password_is_read_back_from_a_connection_string(password: str) -> None:
    read = DatabaseUrl.read(make_conninfo(host="h", user="u", password=password))
    assert read.secrets == (password,)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    for url in (text, f"postgresql://{text}", f"postgresql://u:{text}@h/d", f"host={text}"):
        with contextlib.suppress(DatabaseUrlError):
            assert DatabaseUrl.read(url).masked()
