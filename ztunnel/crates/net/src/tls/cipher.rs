//! AES-GCM for the record layer (RFC 5116 §5): one key, from the library that is faster on this processor.
//!
//! Owns the choice of the library; not nonces, not records. Decision 52.

use aws_lc_rs::aead as aws;
use ring::aead as ring;
use rustls::ConnectionTrafficSecrets;

pub(super) const TAG: usize = 16;
const STRANGE_KEY: &str = "a key of a strange length";

/// Boxed: one of them is an address, the other a few hundred bytes of round keys.
pub(super) enum Cipher {
    Aws(Box<aws::LessSafeKey>),
    Ring(Box<ring::LessSafeKey>),
}

impl Cipher {
    /// The key, and its static IV of 12 bytes. Refuses what the mesh does not offer.
    pub(super) fn new(secrets: &ConnectionTrafficSecrets) -> Result<(Self, [u8; 12]), String> {
        let make = if ring_is_faster() {
            Self::of_ring
        } else {
            Self::of_aws
        };
        let (bits, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (128, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (256, key, iv),
            _ => return Err("a cipher suite was negotiated that nobody offered".to_owned()),
        };
        let iv = iv
            .as_ref()
            .try_into()
            .map_err(|_| "an IV of a strange length".to_owned())?;
        Ok((make(bits, key.as_ref())?, iv))
    }

    fn of_aws(bits: u16, key: &[u8]) -> Result<Self, String> {
        let algorithm = if bits == 128 {
            &aws::AES_128_GCM
        } else {
            &aws::AES_256_GCM
        };
        let key = aws::UnboundKey::new(algorithm, key).map_err(|_| STRANGE_KEY.to_owned())?;
        Ok(Self::Aws(Box::new(aws::LessSafeKey::new(key))))
    }

    fn of_ring(bits: u16, key: &[u8]) -> Result<Self, String> {
        let algorithm = if bits == 128 {
            &ring::AES_128_GCM
        } else {
            &ring::AES_256_GCM
        };
        let key = ring::UnboundKey::new(algorithm, key).map_err(|_| STRANGE_KEY.to_owned())?;
        Ok(Self::Ring(Box::new(ring::LessSafeKey::new(key))))
    }

    /// Encrypts `plain` in place; the tag goes to `tag`, of 16 bytes. Never twice with one nonce.
    pub(super) fn seal(
        &self,
        nonce: [u8; 12],
        aad: &[u8],
        plain: &mut [u8],
        tag: &mut [u8],
    ) -> Option<()> {
        match self {
            Self::Aws(key) => {
                let nonce = aws::Nonce::assume_unique_for_key(nonce);
                let made = key.seal_in_place_separate_tag(nonce, aws::Aad::from(aad), plain);
                tag.copy_from_slice(made.ok()?.as_ref());
            }
            Self::Ring(key) => {
                let nonce = ring::Nonce::assume_unique_for_key(nonce);
                let made = key.seal_in_place_separate_tag(nonce, ring::Aad::from(aad), plain);
                tag.copy_from_slice(made.ok()?.as_ref());
            }
        }
        Some(())
    }

    /// Decrypts in place what `sealed` holds before its tag; None: it is not what was sealed.
    pub(super) fn open<'a>(
        &self,
        nonce: [u8; 12],
        aad: &[u8],
        sealed: &'a mut [u8],
    ) -> Option<&'a mut [u8]> {
        match self {
            Self::Aws(key) => {
                let nonce = aws::Nonce::assume_unique_for_key(nonce);
                key.open_in_place(nonce, aws::Aad::from(aad), sealed).ok()
            }
            Self::Ring(key) => {
                let nonce = ring::Nonce::assume_unique_for_key(nonce);
                key.open_in_place(nonce, ring::Aad::from(aad), sealed).ok()
            }
        }
    }
}

/// Vector AES on registers of 256 bits: ring has code for it. aws-lc (1.19) uses vector AES only with AVX-512, and
/// then it is the faster one.
#[cfg(target_arch = "x86_64")]
fn ring_is_faster() -> bool {
    let narrow = is_x86_feature_detected!("vaes")
        && is_x86_feature_detected!("vpclmulqdq")
        && is_x86_feature_detected!("avx2");
    let wide = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl");
    narrow && !wide
}

#[cfg(not(target_arch = "x86_64"))]
fn ring_is_faster() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lengths around blocks, strides of vector code, and a whole record.
    const LENGTHS: [usize; 12] = [0, 1, 15, 16, 17, 95, 96, 127, 129, 1000, 4096, 16_385];

    fn both(bits: u16) -> [Cipher; 2] {
        let key: Vec<u8> = (0..bits / 8).map(|byte| byte as u8).collect();
        [Cipher::of_aws, Cipher::of_ring].map(|make| make(bits, &key).expect("a key"))
    }

    fn sealed(cipher: &Cipher, length: usize) -> Vec<u8> {
        let mut plain: Vec<u8> = (0..length).map(|at| (at * 7) as u8).collect();
        let mut tag = [0; TAG];
        cipher
            .seal([9; 12], b"header", &mut plain, &mut tag)
            .expect("sealed");
        plain.extend(tag);
        plain
    }

    #[test]
    fn both_libraries_seal_to_the_same_bytes_and_open_each_others() {
        for bits in [128, 256] {
            let [aws, ring] = both(bits);
            for length in LENGTHS {
                let mut said = sealed(&aws, length);
                assert_eq!(said, sealed(&ring, length), "{bits} bits, {length} bytes");
                let mut again = said.clone();
                let opened = [
                    aws.open([9; 12], b"header", &mut said).map(|p| p.to_vec()),
                    ring.open([9; 12], b"header", &mut again)
                        .map(|p| p.to_vec()),
                ];
                let plain: Vec<u8> = (0..length).map(|at| (at * 7) as u8).collect();
                assert_eq!(opened, [Some(plain.clone()), Some(plain)]);
            }
        }
    }

    #[test]
    fn neither_library_opens_what_was_altered_anywhere() {
        for cipher in both(128).iter().chain(&both(256)) {
            let good = sealed(cipher, 100);
            for at in 0..good.len() {
                let mut bad = good.clone();
                bad[at] ^= 1;
                assert!(cipher.open([9; 12], b"header", &mut bad).is_none());
            }
            let (mut other_header, mut other_nonce) = (good.clone(), good.clone());
            assert!(cipher.open([9; 12], b"Header", &mut other_header).is_none());
            assert!(cipher.open([8; 12], b"header", &mut other_nonce).is_none());
        }
    }

    #[test]
    fn a_key_of_the_wrong_length_is_refused_by_both() {
        for make in [Cipher::of_aws, Cipher::of_ring] {
            assert_eq!(make(128, &[0; 15]).err().as_deref(), Some(STRANGE_KEY));
        }
    }
}
