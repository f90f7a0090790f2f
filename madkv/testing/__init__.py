"""Tools that judge a running store: line clients by the dozen, testcases, the fuzzer and its checker."""
