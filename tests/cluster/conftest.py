import pytest
from small_corpus import causal


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return causal(tmp_path_factory.mktemp("data"))
