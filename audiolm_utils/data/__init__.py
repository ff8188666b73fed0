"""Audio, annotations, the pocket corpus and the cache that everything fetched or built lives in."""
