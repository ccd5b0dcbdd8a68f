//! CRC-32C of bytes that are followed by others, without reading those.
//!
//! A CRC is a polynomial over GF(2), reduced by Castagnoli's; bytes that follow multiply it by x^8 each. Powers of x are
//! kept as constants, so a shift is one product for each bit of the length: about a microsecond, where the matrices of
//! zlib's first `crc32_combine` take thirty.

/// Castagnoli's polynomial, lowest power first (RFC 3720 appendix B.4).
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// x^0, lowest power first.
const ONE: u32 = 1 << 31;
/// x to the power of 8 * 2^k, for each bit k of a length.
const POWERS: [u32; usize::BITS as usize] = powers();

/// What `crc` adds to the CRC of bytes that end in `length` others.
pub(super) fn shifted(crc: u32, length: usize) -> u32 {
    let bits = POWERS.iter().enumerate().filter(|(bit, _)| length >> bit & 1 == 1);
    bits.fold(crc, |crc, (_, power)| product(crc, *power))
}

#[expect(clippy::indexing_slicing, reason = "checked by the compiler: it runs there")]
const fn powers() -> [u32; usize::BITS as usize] {
    let mut powers = [0; usize::BITS as usize];
    // x^8.
    let mut power = ONE >> 8;
    let mut bit = 0;
    while bit < powers.len() {
        powers[bit] = power;
        power = product(power, power);
        bit += 1;
    }
    powers
}

/// The product of two polynomials, reduced.
const fn product(left: u32, mut right: u32) -> u32 {
    let (mut sum, mut at) = (0, ONE);
    while at != 0 {
        if left & at != 0 {
            sum ^= right;
        }
        right = if right & 1 == 1 { right >> 1 ^ POLYNOMIAL } else { right >> 1 };
        at >>= 1;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_what_the_library_has_for_zeros_that_follow() {
        for length in [0, 1, 2, 3, 61, 255, 4_096, 65_537, 1_000_003, (1 << 31) + 7] {
            for crc in [0, 1, ONE, POLYNOMIAL, u32::MAX, 0x1234_5678] {
                assert_eq!(shifted(crc, length), crc32c::crc32c_combine(crc, 0, length), "{crc:#x} by {length}");
            }
        }
    }
}
