//! HPACK's Huffman code, decoding only (RFC 7541 §5.2, appendix B).
//!
//! The code is canonical: symbols of one length have consecutive codes in the order of their values, and longer codes
//! follow shorter ones. So the lengths are the whole table; everything else is derived from them at compile time.

/// The length in bits of each byte's code; the last is EOS.
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5,
    5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6,
    6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22,
    23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22,
    21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20,
    22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19,
    21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22,
    22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];
const SHORTEST: usize = 5;
const LONGEST: usize = 30;
const EOS: usize = 256;

struct Code {
    /// Per length: the first 32-bit word, code at its top, that is past all codes of this length.
    limit: [u64; LONGEST + 1],
    /// Per length: its first code.
    first: [u32; LONGEST + 1],
    /// Per length: where its symbols begin in `symbols`.
    start: [u16; LONGEST + 1],
    symbols: [u16; 257],
}

static CODE: Code = derive();

const fn derive() -> Code {
    let mut code = Code {
        limit: [0; LONGEST + 1],
        first: [0; LONGEST + 1],
        start: [0; LONGEST + 1],
        symbols: [0; 257],
    };
    let (mut next, mut count, mut length) = (0u32, 0u16, 1);
    while length <= LONGEST {
        next <<= 1;
        code.first[length] = next;
        code.start[length] = count;
        let mut symbol = 0;
        while symbol < LENGTHS.len() {
            if LENGTHS[symbol] as usize == length {
                code.symbols[count as usize] = symbol as u16;
                count += 1;
                next += 1;
            }
            symbol += 1;
        }
        code.limit[length] = (next as u64) << (32 - length);
        length += 1;
    }
    code
}

/// Not the code of any string: EOS inside, or padding that is not the beginning of EOS.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadHuffman;

/// Appends the decoded string to `out`.
pub(super) fn decode(input: &[u8], out: &mut Vec<u8>) -> Result<(), BadHuffman> {
    let mut input = input.iter();
    let (mut bits, mut count) = (0u64, 0usize); // `count` bits, at the top of the word
    loop {
        while count <= 56 {
            let Some(byte) = input.next() else { break };
            bits |= u64::from(*byte) << (56 - count);
            count += 8;
        }
        let padded = bits | (u64::MAX.checked_shr(count as u32).unwrap_or(0));
        let length = length_of(padded >> 32);
        if length > count {
            // RFC 7541 §5.2: less than a byte of padding, all ones.
            return if count < 8 && padded == u64::MAX {
                Ok(())
            } else {
                Err(BadHuffman)
            };
        }
        out.push(symbol_of(padded, length)?);
        bits <<= length;
        count -= length;
    }
}

fn length_of(word: u64) -> usize {
    (SHORTEST..LONGEST)
        .find(|&length| word < CODE.limit[length])
        .unwrap_or(LONGEST)
}

fn symbol_of(bits: u64, length: usize) -> Result<u8, BadHuffman> {
    let code = (bits >> (64 - length)) as u32;
    let index = usize::from(CODE.start[length]) + (code - CODE.first[length]) as usize;
    match usize::from(CODE.symbols[index]) {
        EOS => Err(BadHuffman),
        symbol => Ok(symbol as u8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(input: &[u8]) -> Result<Vec<u8>, BadHuffman> {
        let mut out = Vec::new();
        decode(input, &mut out).map(|()| out)
    }

    /// The code of `text` by the definition: used to check the decoder against every symbol.
    fn encoded(text: &[u8]) -> Vec<u8> {
        let (mut bits, mut count, mut out) = (0u64, 0, Vec::new());
        for &byte in text {
            let length = usize::from(LENGTHS[usize::from(byte)]);
            let index = (0..257)
                .find(|&i| usize::from(CODE.symbols[i]) == usize::from(byte))
                .expect("a symbol");
            let code = u64::from(CODE.first[length]) + index as u64 - u64::from(CODE.start[length]);
            bits = bits << length | code;
            count += length;
            while count >= 8 {
                count -= 8;
                out.push((bits >> count) as u8);
            }
        }
        if count > 0 {
            out.push((bits << (8 - count)) as u8 | (0xff >> count));
        }
        out
    }

    #[test]
    fn the_code_is_complete_and_ends_with_eos() {
        let sum: u64 = LENGTHS
            .iter()
            .map(|&length| 1u64 << (LONGEST - usize::from(length)))
            .sum();
        assert_eq!(sum, 1 << LONGEST);
        assert_eq!(usize::from(CODE.symbols[256]), EOS);
    }

    #[test]
    fn strings_of_the_rfc_come_out() {
        // RFC 7541 C.4.1, C.4.2, C.6.1
        let www = [
            0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff,
        ];
        assert_eq!(decoded(&www), Ok(b"www.example.com".to_vec()));
        assert_eq!(
            decoded(&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf]),
            Ok(b"no-cache".to_vec())
        );
        assert_eq!(decoded(&[0x64, 0x02]), Ok(b"302".to_vec()));
        assert_eq!(decoded(&[]), Ok(vec![]));
    }

    #[test]
    fn every_byte_survives_alone_and_in_company() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decoded(&encoded(&all)), Ok(all.clone()));
        for byte in all {
            assert_eq!(decoded(&encoded(&[byte])), Ok(vec![byte]));
        }
    }

    #[test]
    fn padding_must_be_the_beginning_of_eos_and_shorter_than_a_byte() {
        assert_eq!(decoded(&[0b0001_1000]), Err(BadHuffman)); // 'a', then zeros
        assert_eq!(decoded(&[0b0001_1111, 0xff]), Err(BadHuffman)); // 'a', then eleven ones
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xff]), Err(BadHuffman)); // EOS
    }
}
