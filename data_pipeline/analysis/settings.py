"""What a recipe says about how corpora are compared."""

from pydantic import Field

from configs.schema import Config

MOST_NGRAMS = 3


class Context(Config):
    """How the neighbours of words are compared.

    Attributes:
        window: so many words on either side, of the same document, are a word's neighbours.
        words: at most so many words of each pair are compared, the most frequent first.
        occurrences: at most so many occurrences of a word are looked at in each half of a corpus.
        least: a word is compared where every half of both corpora has it so often.
        listed: how many of the words that shift most are listed.
    """

    window: int = Field(default=5, ge=1, le=50)
    words: int = Field(default=1000, ge=1)
    occurrences: int = Field(default=200, ge=1)
    least: int = Field(default=30, ge=1)
    listed: int = Field(default=15, ge=0)


class Clusters(Config):
    """How documents are clustered: TF-IDF of words, its main directions, k-means.

    Attributes:
        number: how many clusters; fewer where there are fewer than ten documents for each.
        documents: at most so many documents of each corpus, a fixed random sample.
        components: how many directions of the TF-IDF space are kept.
        words: how many words are listed of each cluster.
    """

    number: int = Field(default=20, ge=1)
    documents: int = Field(default=3000, ge=1)
    components: int = Field(default=50, ge=1)
    words: int = Field(default=10, ge=0)
