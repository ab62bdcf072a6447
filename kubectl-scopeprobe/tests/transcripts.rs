//! Transcripts of commands, as pages of documentation show them. `TRYCMD=overwrite` writes them again; look at what changed.

#[test]
fn transcripts() {
    trycmd::TestCases::new().case("tests/cmd/*.md").env("LANG", "C.UTF-8").run();
}
