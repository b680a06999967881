// An echo in Go as one would write it: a goroutine per connection, bufio on both sides, and a flush when no more
// input has come.
package main

import (
	"bufio"
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"strings"
)

const chunk = 65536

func lines(connection net.Conn) {
	defer connection.Close()
	reader := bufio.NewReaderSize(connection, chunk)
	writer := bufio.NewWriterSize(connection, chunk)
	for {
		line, err := reader.ReadSlice('\n')
		if err != nil {
			return
		}
		if _, err := writer.Write(line); err != nil {
			return
		}
		if reader.Buffered() == 0 {
			if err := writer.Flush(); err != nil {
				return
			}
		}
	}
}

func raw(connection net.Conn) {
	defer connection.Close()
	buffer := make([]byte, chunk)
	for {
		count, err := connection.Read(buffer)
		if count > 0 {
			if _, err := connection.Write(buffer[:count]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func datagrams(connection *net.UDPConn, answers bool) error {
	buffer := make([]byte, chunk)
	for {
		count, peer, err := connection.ReadFromUDPAddrPort(buffer)
		if err != nil {
			return err
		}
		if answers {
			if _, err := connection.WriteToUDPAddrPort(buffer[:count], peer); err != nil {
				return err
			}
		}
	}
}

func listen(scheme, place, certificate string) (net.Listener, error) {
	switch scheme {
	case "unix":
		return net.Listen("unix", place)
	case "tls":
		pair, err := tls.LoadX509KeyPair(certificate, certificate)
		if err != nil {
			return nil, err
		}
		return tls.Listen("tcp", place, &tls.Config{Certificates: []tls.Certificate{pair}})
	default:
		return net.Listen("tcp", place)
	}
}

func serve() error {
	behaviour := flag.String("behaviour", "lines", "lines, raw or ingest")
	certificate := flag.String("certificate", "", "a PEM file with key and certificate, for tls://")
	flag.Parse()
	scheme, place, found := strings.Cut(flag.Arg(0), "://")
	if !found {
		return fmt.Errorf("%q is no URL", flag.Arg(0))
	}
	if scheme == "udp" {
		address, err := net.ResolveUDPAddr("udp", place)
		if err != nil {
			return err
		}
		connection, err := net.ListenUDP("udp", address)
		if err != nil {
			return err
		}
		fmt.Printf("udp://%s\n", connection.LocalAddr())
		return datagrams(connection, *behaviour != "ingest")
	}
	listener, err := listen(scheme, place, *certificate)
	if err != nil {
		return err
	}
	fmt.Printf("%s://%s\n", scheme, listener.Addr())
	handler := lines
	if *behaviour == "raw" {
		handler = raw
	}
	for {
		connection, err := listener.Accept()
		if err != nil {
			return err
		}
		go handler(connection)
	}
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("echo: ")
	if err := serve(); err != nil && err != io.EOF {
		log.Print(err)
		os.Exit(1)
	}
}
