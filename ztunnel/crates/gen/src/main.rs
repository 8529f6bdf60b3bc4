//! `ztunnel-gen DESCRIPTOR_SET OUT_DIR`: writes the Rust types of the resources that cross door 4.

use prost::Message as _;
use std::{env, error::Error, fs};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().collect();
    let [_, descriptors, out] = args.as_slice() else {
        return Err("usage: ztunnel-gen DESCRIPTOR_SET OUT_DIR".into());
    };
    let set = prost_types::FileDescriptorSet::decode(fs::read(descriptors)?.as_slice())?;
    prost_build::Config::new()
        .out_dir(out)
        .bytes([
            ".istio.workload.Workload.addresses",
            ".istio.workload.NetworkAddress.address",
        ])
        .disable_comments(["."])
        .compile_fds(set)?;
    Ok(())
}
