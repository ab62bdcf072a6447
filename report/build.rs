//! Compiles the wire format without an installed `protoc`.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/report.proto");
    let descriptors = protox::compile(["proto/report.proto"], ["proto"])?;
    tonic_prost_build::configure().codec_path("crate::codec::BoundedCodec").compile_fds(descriptors)?;
    Ok(())
}
